import numpy as np

from hovernet_cyclic.core.types import Box
from infer.clusters import REACH, find_clusters, first_pixel


def drawn(*boxes, shape=(60, 80)):
    np_prob = np.zeros(shape, np.float32)
    for top, left, bottom, right in boxes:
        np_prob[top:bottom, left:right] = 0.9
    return np_prob


def test_clusters_touch_by_their_sides_and_fill_their_holes():
    np_prob = drawn((10, 10, 20, 20), (20, 20, 25, 25), (30, 30, 50, 60))
    np_prob[35:44, 35:45] = 0.1  # a hole of 90 px
    np_prob[25:28, 20:21] = 0.49  # no nucleus
    found = find_clusters(np_prob, Box(0, 0, 60, 80), (60, 80))
    assert sorted(found.boxes[1:]) == [Box(10, 10, 20, 20), Box(20, 20, 25, 25), Box(30, 30, 50, 60)]
    assert (found.numbers[30:50, 30:60] == found.numbers[30, 30]).all()
    assert not found.is_open.any()
    assert first_pixel(found, found.numbers[40, 40], np_prob) == (30, 30)


def test_a_cluster_near_the_edge_of_the_cut_out_is_open_where_the_slide_goes_on():
    np_prob = drawn((REACH, 30, 20, 40), (30, 60, 40, 80 - REACH), (50, 10, 60, 20))
    closed = find_clusters(np_prob, Box(0, 0, 60, 80), (60, 80))
    assert not closed.is_open.any()
    inner = find_clusters(np_prob, Box(64, 64, 124, 144), (900, 900))
    assert inner.is_open[1:].tolist() == [False, False, True]
    np_prob[REACH - 1, 30] = 0.9
    np_prob[30, 80 - REACH] = 0.9
    inner = find_clusters(np_prob, Box(64, 64, 124, 144), (900, 900))
    assert inner.is_open[1:].all()
    at_border = find_clusters(np_prob, Box(0, 820, 60, 900), (900, 900))
    assert at_border.is_open[1:].tolist() == [False, False, True]


def test_background_that_the_edge_cuts_may_be_a_hole_that_joins_two():
    """Two clusters round a pocket of background, of which the cut-out shows a part: on the slide it may be filled."""
    np_prob = drawn((20, 30, 40, 35), (20, 44, 40, 49), (16, 35, 20, 44), shape=(60, 80))
    np_prob[16:20, 35:44] = 0.9
    cut_out = np_prob[:30]  # the pocket, 10 rows of 9 px here, is open below
    found = find_clusters(cut_out, Box(0, 0, 30, 80), (900, 80))
    assert len(found.boxes) == 2 and found.is_open[1]

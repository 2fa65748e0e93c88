"""A network asked about the same image from several sides."""

import numpy as np
import pytest
from scipy import ndimage

from dataloader.augs import apply_turn
from hovernet_cyclic.core.types import RawMaps
from infer.views import TURNS, MeanOfViews, turned_back


def two_nuclei():
    """Of different shapes, off the centre of a map that is not square."""
    inst_map = np.zeros((40, 56), np.int32)
    inst_map[4:19, 6:15] = 1
    inst_map[22:31, 20:47] = 2
    return inst_map


class Exact:
    """Answers with what is coloured in the image, and how far each pixel lies from the middle of its box."""

    def raw_maps(self, image):
        inst_map = image[..., 0].astype(np.int32)
        hv_map = np.zeros((*inst_map.shape, 2), np.float32)
        for inst_id, (rows, columns) in enumerate(ndimage.find_objects(inst_map), 1):
            down, across = np.mgrid[rows, columns]
            offsets = np.stack([across - across.mean(), down - down.mean()], -1) / [np.ptp(across), np.ptp(down)]
            hv_map[rows, columns] = np.where((inst_map[rows, columns] == inst_id)[..., None], offsets, 0)
        return RawMaps((inst_map > 0).astype(np.float32), hv_map, image[..., 0], None)


def image_of(inst_map):
    return np.repeat(inst_map[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("turn", TURNS)
def test_maps_come_back_as_if_the_image_had_not_been_turned(turn):
    image = image_of(two_nuclei())
    plain, back = Exact().raw_maps(image), turned_back(Exact().raw_maps(apply_turn(image, turn)), turn)
    np.testing.assert_array_equal(back.np_prob, plain.np_prob)
    np.testing.assert_array_equal(back.type_map, plain.type_map)
    np.testing.assert_allclose(back.hv_map, plain.hv_map, atol=1e-6)


def test_the_turns_are_all_different():
    image = image_of(two_nuclei())[:40, :40]
    assert len({apply_turn(image, turn).tobytes() for turn in TURNS}) == 8


def test_the_mean_is_taken_over_the_views_asked_for():
    """A segmenter that answers with the image's first row alone: its mean shows which sides were up."""

    class TopRow:
        def raw_maps(self, image):
            np_prob = np.zeros(image.shape[:2], np.float32)
            np_prob[0] = 1
            return RawMaps(np_prob, np.zeros((*image.shape[:2], 2), np.float32))

    image = np.zeros((5, 5, 3), np.uint8)
    np.testing.assert_array_equal(MeanOfViews(TopRow(), 1).raw_maps(image).np_prob[0], np.ones(5))
    four = MeanOfViews(TopRow(), 4).raw_maps(image).np_prob
    for edge in (four[0], four[-1], four[:, 0], four[:, -1]):
        np.testing.assert_allclose(edge[1:-1], 0.25)
    assert not four[1:-1, 1:-1].any()

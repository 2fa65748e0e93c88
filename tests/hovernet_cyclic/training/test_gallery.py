"""Pictures of a run."""

import numpy as np

from dataloader.images import read_rgb
from hovernet_cyclic.core.types import ActivationMap, ImageTile, PseudoMask, RawMaps
from hovernet_cyclic.training.gallery import (
    CAPTION,
    CROP,
    FALSE,
    GAP,
    LONGEST_CAPTION,
    MISSED,
    MOST_ROWS,
    OUTLINE,
    captioned,
    compared,
    heat,
    middle,
    outline,
    shade,
    sheet,
    write_gallery,
)


def grey(height, width, value=100):
    return np.full((height, width, 3), value, np.uint8)


def test_the_middle_and_where_it_lies():
    image = np.arange(400 * 350 * 3, dtype=np.uint32).astype(np.uint8).reshape(400, 350, 3)
    shown, window = middle(image)
    assert shown.shape == (CROP, CROP, 3)
    np.testing.assert_array_equal(shown, image[window])
    assert middle(image[:50, :60])[0].shape == (50, 60, 3)


def test_an_outline_is_drawn_on_the_rim_and_between_touching_nuclei():
    inst_map = np.zeros((20, 30), np.int32)
    inst_map[5:15, 5:15], inst_map[5:15, 15:25] = 1, 70000
    drawn = outline(grey(20, 30), inst_map)
    marked = np.all(drawn == OUTLINE, axis=-1)
    assert marked[5, 5:25].all() and marked[8, 14] and marked[8, 15]
    assert not marked[8, 10] and not marked[inst_map == 0].any()


def test_nuclei_are_compared_on_the_whole_tile():
    drawn, found = np.zeros((CROP + 100, 60), np.int32), np.zeros((CROP + 100, 60), np.int32)
    drawn[80:90, 5:15] = found[80:90, 5:15] = 7
    drawn[150:160, 5:15], found[200:210, 5:15] = 1, 2
    # agreed on, though nearly all of it lies outside of what is shown
    drawn[40:60, 30:40] = found[40:60, 30:40] = 4
    found[55:60, 30:40] = 0
    plain, truth, network = compared(grey(CROP + 100, 60), drawn, found)
    assert plain.shape == truth.shape == network.shape == (CROP, 60, 3) and (plain == 100).all()

    def colours(picture):
        return {tuple(pixel) for pixel in picture.reshape(-1, 3).tolist()} - {(100, 100, 100)}

    assert colours(truth) == {OUTLINE, MISSED} and colours(network) == {OUTLINE, FALSE}
    assert tuple(truth[100, 5]) == MISSED and tuple(network[150, 5]) == FALSE and tuple(truth[30, 5]) == OUTLINE
    assert tuple(truth[5, 30]) == OUTLINE


def test_shade_greys_what_is_hidden_alone():
    hidden = np.zeros((4, 4), bool)
    hidden[0] = True
    drawn = shade(grey(4, 4, 250), hidden)
    assert (drawn[1:] == 250).all() and (drawn[0] < 200).all()


def test_heat_has_one_scale_for_every_tile():
    cold, hot = heat(np.full((4, 4), -20, np.float32)), heat(np.full((4, 4), 20, np.float32))
    assert cold.max() < 10 and hot.mean() > 200
    np.testing.assert_array_equal(heat(np.array([[0.0, 20.0]], np.float32))[:, :1], heat(np.zeros((1, 1), np.float32)))


def test_a_sheet_takes_pictures_of_any_size():
    page = sheet([[grey(10, 20), grey(30, 5)], [grey(4, 4)]])
    assert page.shape == (30 + GAP + 4 + GAP, 20 + GAP + 5 + GAP, 3)
    assert (page[:30, 20 + GAP : -GAP] == 100).all() and (page[:, -GAP:] == 255).all()
    assert (page[:10, :20] == 100).all() and (page[10:36, :20] == 255).all()
    assert (page[36:40, :4] == 100).all() and (page[36:, 4:] == 255).all()


def test_a_caption_is_never_cut_by_its_picture():
    short, long, longest = (captioned(grey(40, 60), text) for text in ("ä", "a" * 40, "a" * 99))
    assert short.shape == (40 + CAPTION, 60, 3)
    assert (
        longest.shape == captioned(grey(40, 60), "a" * LONGEST_CAPTION).shape and 60 < long.shape[1] < longest.shape[1]
    )
    for picture in (short, long, longest):
        assert (picture[:40, :60] == 100).all() and (picture[:40, 60:] == 255).all() and (picture[40:] < 200).any()
        assert (picture[-1] == 255).all() and (picture[40:, -2:] == 255).all(), "letters reach over the edge"


class Blind:
    def raw_maps(self, image):
        return RawMaps(np.zeros(image.shape[:2], np.float32), np.zeros((*image.shape[:2], 2), np.float32))


def test_a_gallery_shows_few_of_many_tiles(tmp_path):
    tiles = [ImageTile(str(i), grey(24, 40), 0.25) for i in range(20)]
    activations = [ActivationMap(t.tile_id, np.zeros((1, 24, 40), np.float32), np.ones(1, np.float32)) for t in tiles]
    empty = np.zeros((24, 40), np.int32)
    masks = [PseudoMask(t.tile_id, 1, empty, empty == 0, np.zeros(0, np.float32)) for t in tiles]
    gallery = write_gallery(tmp_path / "new" / "gallery.png", iter(tiles), activations, masks, Blind(), 80)
    assert [row["tile_id"] for row in gallery.rows] == ["0", "4", "8", "11", "15", "19"]
    assert gallery.rows[1]["boxes"][3] == (24 + GAP, 3 * (40 + GAP), 2 * 24 + GAP, 3 * (40 + GAP) + 40)
    assert read_rgb(tmp_path / "new" / "gallery.png").shape == (MOST_ROWS * (24 + GAP), 4 * (40 + GAP), 3)

import json

import cv2
import numpy as np
import pytest

from dataloader.images import write_png
from dataloader.slides import SlideScale, open_slide
from dataloader.tissue import TissueMask, TissueSettings, find_tissue, given_mask, read_coarsely
from hovernet_cyclic.core.errors import SlideError, UnreadableRegionError
from hovernet_cyclic.core.types import Box

GLASS, PINK = (242, 240, 243), (222, 170, 200)


def coarse(*discs, side=200):
    """A slide at 8 um/px: discs (row, column, radius, colour) on grainy glass."""
    image = np.full((side, side, 3), GLASS, np.uint8)
    for row, column, radius, colour in discs:
        cv2.circle(image, (column, row), radius, colour, -1)
    grain = np.random.default_rng(0).integers(-3, 4, image.shape)
    return np.clip(image.astype(int) + grain, 0, 255).astype(np.uint8)


def test_tissue_is_found_and_dust_and_ink_are_not():
    image = coarse((100, 100, 50, PINK), (20, 20, 3, PINK), (180, 30, 12, (20, 20, 22)))
    mask = find_tissue(image)
    assert mask[100, 100] and mask[60, 100] and not mask[20, 20] and not mask[180, 30]
    truth = np.zeros(mask.shape, np.uint8)
    cv2.circle(truth, (100, 100), 50 + 2, 1, -1)  # widened by margin_um: 2 px
    assert (mask != truth).mean() < 0.01


def test_a_slide_of_one_class_is_not_cut_in_two():
    assert not find_tissue(coarse()).any()
    assert find_tissue(coarse((100, 100, 400, PINK))).all()


def test_small_holes_are_tissue_and_large_ones_are_not():
    image = coarse((100, 100, 80, PINK), (100, 70, 9, GLASS), (100, 130, 30, GLASS))
    mask = find_tissue(image)
    assert mask[100, 70] and not mask[100, 130]
    strict = find_tissue(image, TissueSettings(largest_hole_um2=0.0, close_um=8.0))
    assert not strict[100, 70]


def test_the_mask_is_asked_in_pixels_of_the_view():
    mask = np.zeros((10, 20), bool)
    mask[4, 10] = True
    tissue = TissueMask(mask, (320, 640))  # 32 px a pixel of the mask
    assert tissue.touches(Box(128, 320, 160, 352)) and tissue.touches(Box(0, 0, 129, 321))
    assert not tissue.touches(Box(0, 0, 128, 640)) and not tissue.touches(Box(160, 0, 320, 640))
    assert tissue.at([[320, 128], [351, 159], [319, 128], [352, 128]]).tolist() == [True, True, False, False]
    assert tissue.share == 1 / 200 and tissue.share_in(Box(128, 320, 160, 352)) == 1.0


def test_a_slide_is_read_coarsely_part_by_part_and_a_torn_part_is_white(tmp_path):
    write_png(tmp_path / "a.png", np.full((9000, 300, 3), PINK, np.uint8))
    reader = open_slide(tmp_path / "a.png")
    read, boxes = reader.read, []

    def torn(level, box):
        boxes.append(box)
        if box.top >= 4000:
            raise UnreadableRegionError("torn")
        return read(level, box)

    reader.read = torn
    image = read_coarsely(reader, SlideScale((0.25, 0.25), "given"), 8.0)
    assert image.shape == (281, 9, 3)
    assert (image[:100] == PINK).all() and (image[-20:] == 255).all()
    assert max(box.height for box in boxes) <= 4096 + 32


@pytest.fixture
def slide(tmp_path):
    write_png(tmp_path / "slide.png", np.full((200, 400, 3), PINK, np.uint8))
    return open_slide(tmp_path / "slide.png")


def test_a_mask_is_given_as_png_or_geojson(tmp_path, slide):
    masks = tmp_path / "masks"
    masks.mkdir()
    assert given_mask(masks, "slide", slide) is None
    ring = [[100, 50], [300, 50], [300, 150], [100, 150], [100, 50]]
    hole = [[180, 80], [220, 80], [220, 120], [180, 120], [180, 80]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring, hole]}, "properties": {}}
    for content in ({"type": "FeatureCollection", "features": [feature]}, [feature], feature):
        (masks / "slide.geojson").write_text(json.dumps(content))
        mask = given_mask(masks, "slide", slide)
        assert mask.shape == (200, 400)
        assert mask[60, 110] and mask[140, 290] and not mask[100, 200] and not mask[20, 110] and not mask[60, 320]
    write_png(masks / "slide.png", np.repeat([[0, 255]], 20, axis=0).repeat(20, axis=1).astype(np.uint8))
    assert given_mask(masks, "slide", slide)[:, 20:].all()


@pytest.mark.parametrize("values", [np.uint16(1), np.uint8(1), (np.uint8(1), np.uint8(0), np.uint8(0))])
def test_anything_but_0_in_a_mask_is_tissue(tmp_path, slide, values):
    mask = np.zeros((20, 40, *np.shape(values)), np.asarray(values).dtype)
    mask[:, 20:] = values
    write_png(tmp_path / "slide.png", mask)
    given = given_mask(tmp_path, "slide", slide)
    assert given[:, 20:].all() and not given[:, :20].any()


def test_a_mask_of_no_use_is_named(tmp_path, slide):
    for content in ("{", "[1]", '{"type": "Feature"}', '{"type": "Polygon", "coordinates": 3}'):
        (tmp_path / "slide.geojson").write_text(content)
        (tmp_path / "none.geojson").write_text(content)
        with pytest.raises(SlideError, match=r"none\.geojson is no GeoJSON of polygons"):
            given_mask(tmp_path, "none", slide)
    line = {"type": "LineString", "coordinates": [[0, 0], [9, 9]]}
    (tmp_path / "line.geojson").write_text(json.dumps({"type": "Feature", "geometry": line}))
    with pytest.raises(SlideError, match=r"line\.geojson holds no polygon"):
        given_mask(tmp_path, "line", slide)
    (tmp_path / "torn.png").write_bytes(b"x")
    with pytest.raises(SlideError, match=r"torn\.png is damaged"):
        given_mask(tmp_path, "torn", slide)
    write_png(tmp_path / "square.png", np.zeros((50, 50), np.uint8))
    with pytest.raises(SlideError, match="other proportions"):
        given_mask(tmp_path, "square", slide)

import numpy as np
import pytest

from dataloader.images import write_png
from dataloader.slides import SlideScale, SlideView
from dataloader.tissue import TissueMask
from hovernet_cyclic.core.errors import SlideError
from hovernet_cyclic.core.types import Box, RawMaps
from infer.slide_plan import BLOCK, ActiveArea, SlideRequest, _active_blocks, plan_slide, window_shape


class Reader:
    """A slide of one level, white, that says no more than asked."""

    path, origin = "a.svs", (0, 0)

    def __init__(self, height=600, width=900, mpp=None, magnification=None):
        self.level_shapes, self.mpp, self.magnification = ((height, width),), mpp, magnification

    def read(self, level, box):
        return np.full((box.height, box.width, 3), 255, np.uint8)

    def close(self):
        pass


def planned(tmp_path, monkeypatch, reader, mask=None, **request):
    path = tmp_path / "a.svs"
    path.write_bytes(b"x")
    monkeypatch.setattr("infer.slide_plan.open_slide", lambda _: reader)
    if mask is not None:
        write_png(tmp_path / "masks" / "a.png", mask.astype(np.uint8) * 255)
        request["mask_dir"] = tmp_path / "masks"
    wanted = SlideRequest(**{"mpp": 0.5, "window": 256, "find_tissue": False, **request})
    return plan_slide(str(path), "a", wanted, lambda whole: (64, 128))


def test_windows_are_whole_patches():
    assert window_shape((64, 128), 256) == (256, 256) and window_shape((1856, 880), 2048) == (1856, 1760)
    assert window_shape((3000, 100), 200) == (3000, 300)  # twice the margin at least


def test_glass_is_left_to_itself(tmp_path, monkeypatch):
    mask = np.zeros((60, 90), bool)
    mask[:10, :10] = True  # rows and columns 0 to 100 of the slide
    plan = planned(tmp_path, monkeypatch, Reader(mpp=(0.5, 0.5)), mask)
    assert {(tile.key.row, tile.key.column) for tile in plan.wanted} == {(0, 0)}
    assert {(key.row, key.column) for key in plan.windows_for(plan.wanted)} == {(0, 0)}
    assert len(plan.tiles) == 3 * 4
    everything = planned(tmp_path, monkeypatch, Reader(mpp=(0.5, 0.5)))
    assert len(everything.wanted) == 12 and len(everything.windows_for(everything.wanted)) == 12
    last = [tile for tile in everything.tiles if (tile.key.row, tile.key.column) == (2, 3)]
    assert {(key.row, key.column) for key in everything.windows_for(last)} == {(1, 2), (1, 3), (2, 2), (2, 3)}


def test_the_network_is_asked_on_tissue_and_round_it_whatever_the_windows():
    mask = np.zeros((50, 100), bool)
    mask[20, 40] = True  # 16 px a pixel: rows 320..336, columns 640..656
    view = SlideView(Reader(800, 1600), 0, (1.0, 1.0), (800, 1600), (0.5, 0.5))
    blocks = _active_blocks(view, TissueMask(mask, (800, 1600)))
    assert blocks.shape == (13, 25)
    rows, columns = np.nonzero(blocks)
    # 64 um are 128 px: whatever lies that near is asked for.
    assert rows.min() <= (320 - 128) // BLOCK and rows.max() >= (335 + 128) // BLOCK
    assert rows.min() >= (320 - 128) // BLOCK - 1 and rows.max() <= (335 + 128) // BLOCK + 1
    assert columns.min() <= (640 - 128) // BLOCK and columns.max() >= (655 + 128) // BLOCK


def test_nothing_is_a_nucleus_where_the_network_was_not_asked():
    active = ActiveArea(np.array([[True, False], [False, False]]))
    raw = RawMaps(np.ones((100, 90), np.float32), np.ones((100, 90, 2), np.float32))
    blanked = active.only(raw, Box(0, 0, 100, 90)).np_prob
    assert blanked[:64, :64].all() and not blanked[64:].any() and not blanked[:, 64:].any()
    assert active.only(raw, Box(0, 0, 64, 64)) is raw
    assert active.touches(Box(0, 63, 1, 65)) and not active.touches(Box(0, 64, 64, 128))


def test_a_person_is_told_of_a_guessed_or_too_coarse_scale(tmp_path, monkeypatch):
    assert planned(tmp_path, monkeypatch, Reader(mpp=(0.5, 0.5))).notices == []
    (guessed,) = planned(tmp_path, monkeypatch, Reader(magnification=20)).notices
    assert "taken as 0.5 from its magnification" in guessed
    (coarse,) = planned(tmp_path, monkeypatch, Reader(100, 100, mpp=(1.0, 1.0))).notices
    assert "is coarser than the network's 0.5" in coarse


def test_a_person_is_told_that_there_is_no_tissue(tmp_path, monkeypatch):
    (nothing,) = planned(tmp_path, monkeypatch, Reader(mpp=(0.5, 0.5)), np.zeros((60, 90), bool)).notices
    assert "a: there is nothing to do, as no tissue was found or given" in nothing and "--whole_slide" in nothing


def test_a_mask_that_is_missing_is_named(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlideError, match=r"holds no a\.png and no a\.geojson"):
        planned(tmp_path, monkeypatch, Reader(mpp=(0.5, 0.5)), mask_dir=tmp_path / "empty")
    assert planned(tmp_path, monkeypatch, Reader(mpp=(0.5, 0.5))).scale == SlideScale((0.5, 0.5), "file")

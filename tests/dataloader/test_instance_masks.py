"""One black-and-white image per nucleus, and the cache of what they become."""

import cv2
import numpy as np
import pytest

from dataloader.instance_masks import is_black_and_white, read_black_and_white, read_instance_masks
from hovernet_cyclic.core.errors import DatasetError

SHAPE = (6, 8)


def written(path, mask, channels=1, dtype=np.uint8):
    values = np.uint8(mask) * 255 if dtype == np.uint8 else mask.astype(dtype)
    if channels > 1:
        values = np.dstack([values] * 3 + ([np.full(values.shape, 255, np.uint8)] if channels == 4 else []))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", values)[1].tobytes())


def square(top, left, side):
    mask = np.zeros(SHAPE, bool)
    mask[top : top + side, left : left + side] = True
    return mask


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "Bild ä 1" / "masks"
    written(root / "nucleus 10.png", square(3, 4, 3))
    written(root / "nucleus 9.png", square(0, 0, 2), channels=4)
    written(root / "nucleus 8.png", square(1, 5, 2), channels=3)
    return root


def read(folder, shape=SHAPE):
    return read_instance_masks(folder, shape, folder.parent / ".converted")


def test_masks_of_any_channels_are_numbered_as_people_count(folder):
    expected = np.zeros(SHAPE, np.int32)
    expected[1:3, 5:7], expected[:2, :2], expected[3:6, 4:7] = 1, 2, 3
    annotation = read(folder)
    np.testing.assert_array_equal(annotation.inst_map, expected)
    assert annotation.notes == () and annotation.type_map is None


def test_overlaps_are_settled_and_said(folder):
    written(folder / "nucleus 11.png", square(0, 0, 4))
    annotation = read(folder)
    assert annotation.inst_map[0, 0] == 2 and annotation.inst_map[2, 2] == 4
    assert annotation.notes == ("1 of 4 nuclei lost 4 px to smaller ones that overlap them",)


def test_the_cache_answers_changes_with_the_content_and_can_go_at_any_time(folder, monkeypatch):
    first = read(folder)
    (stored,) = (folder.parent / ".converted").iterdir()
    monkeypatch.setattr("dataloader.instance_masks.paint", None)  # whoever paints again fails
    np.testing.assert_array_equal(read(folder).inst_map, first.inst_map)
    monkeypatch.undo()
    stored.write_bytes(b"damaged")
    np.testing.assert_array_equal(read(folder).inst_map, first.inst_map)
    written(folder / "nucleus 9.png", square(0, 0, 1))
    changed = read(folder)
    assert not np.array_equal(changed.inst_map, first.inst_map)
    for path in (folder.parent / ".converted").iterdir():
        path.unlink()
    np.testing.assert_array_equal(read(folder).inst_map, changed.inst_map)
    assert not [path for path in (folder.parent / ".converted").iterdir() if path.suffix != ".npz"]


def test_without_a_place_for_the_cache_there_is_none(folder):
    (folder.parent / ".converted").write_text("a file where the folder would be")
    assert read(folder).inst_map.max() == 3


def refusal(folder, shape=SHAPE):
    with pytest.raises(DatasetError) as caught:
        read(folder, shape)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


def test_a_mask_of_another_size_is_named(folder):
    sentence = refusal(folder, (6, 9))
    assert "nucleus 8.png has 6 x 8 px but its image has 6 x 9 px" in sentence


def test_torn_and_strange_masks_are_named(folder):
    whole = (folder / "nucleus 8.png").read_bytes()
    for content, words in ((whole[:-20], "damaged"), (b"", "empty file"), (b"text", "no image")):
        (folder / "nucleus 8.png").write_bytes(content)
        assert "nucleus 8.png" in refusal(folder) and words in refusal(folder)


def test_a_missing_or_empty_folder_is_named(folder, tmp_path):
    assert "unpack the whole archive" in refusal(tmp_path / "absent" / "masks")
    for path in folder.iterdir():
        path.unlink()
    assert "holds no image" in refusal(folder)


def test_one_mask_of_all_nuclei_is_cut_into_pieces(tmp_path):
    mask = square(0, 0, 2) | square(3, 3, 2) | square(2, 2, 1)
    written(tmp_path / "all.png", mask)
    annotation = read_black_and_white(tmp_path / "all.png")
    np.testing.assert_array_equal(annotation.inst_map, mask.astype(np.int32))  # corners touch: one nucleus
    assert "touch" in annotation.notes[0]


def test_numbers_of_nuclei_are_no_black_and_white():
    assert is_black_and_white(np.uint8([[0, 255]])) and is_black_and_white(np.uint8([[0, 1]]))
    assert is_black_and_white(np.zeros((2, 2, 4), np.uint8) + 255)
    assert not is_black_and_white(np.uint8([[0, 1, 2]]))

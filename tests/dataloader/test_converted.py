"""The cache of converted label maps."""

import numpy as np
import pytest

from dataloader.converted import content_key, converted
from hovernet_cyclic.core.types import Annotation

PARTS = [("a.png", b"12"), ("b.png", b"3")]
INST_MAP = np.arange(6, dtype=np.int32).reshape(2, 3)


@pytest.mark.parametrize(
    "parts",
    [
        [("a.png", b"13"), ("b.png", b"3")],
        [("c.png", b"12"), ("b.png", b"3")],
        [("a.png", b"1"), ("b.png", b"23")],
        [("a.png", b"12")],
        [("b.png", b"3"), ("a.png", b"12")],
    ],
    ids=["a byte", "a name", "where a file ends", "a file less", "their order"],
)
def test_the_key_changes_with(parts):
    assert content_key(parts, (2, 3)) != content_key(PARTS, (2, 3))


def test_the_key_changes_with_the_image_and_with_nothing_else():
    assert content_key(PARTS, (2, 3)) == content_key(iter(PARTS), (2, 3)) != content_key(PARTS, (3, 2))


@pytest.mark.parametrize("type_map", [None, INST_MAP.astype(np.uint8)])
def test_what_was_converted_once_is_given_back_as_it_was(tmp_path, type_map):
    made = Annotation("", INST_MAP, type_map, ("2 of 3 nuclei é lost",))
    first = converted(tmp_path / ".converted", "key", lambda: made)
    again = converted(tmp_path / ".converted", "key", lambda: pytest.fail("converted twice"))
    for found in (first, again):
        np.testing.assert_array_equal(found.inst_map, INST_MAP)
        assert found.inst_map.dtype == np.int32 and found.notes == made.notes
        assert (found.type_map is None) == (type_map is None)
        if type_map is not None:
            np.testing.assert_array_equal(found.type_map, type_map)
    assert [path.name for path in (tmp_path / ".converted").iterdir()] == ["key.npz"]


def test_a_folder_that_cannot_hold_it_is_no_error(tmp_path):
    (tmp_path / "file").write_text("")
    made = Annotation("", INST_MAP)
    assert converted(tmp_path / "file", "key", lambda: made) is made
    assert converted(tmp_path / "none" / "there", "key", lambda: made) is made
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

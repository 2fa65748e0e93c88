"""Pseudo masks on disk."""

import dataclasses

import numpy as np
import pytest

from dataloader.pseudo_store import fingerprint, load_pseudo_mask, mask_path, save_pseudo_masks
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import PseudoMask


def mask(tile_id, count=3):
    rng = np.random.default_rng(0)
    inst_map = rng.integers(0, count + 1, (40, 50)).astype(np.int32)
    return PseudoMask(tile_id, 2, inst_map, rng.random((40, 50)) < 0.5, rng.random(count).astype(np.float32))


@pytest.mark.parametrize("tile_id", ["tile_00", "TCGA-18.v2", "a tile, umlaut ä"])
@pytest.mark.parametrize("count", [0, 3])
def test_what_was_saved_is_loaded(tmp_path, tile_id, count):
    saved = mask(tile_id, count)
    save_pseudo_masks(tmp_path / "new" / "folder", [saved])
    loaded = load_pseudo_mask(tmp_path / "new" / "folder", tile_id)
    assert (loaded.tile_id, loaded.cycle) == (tile_id, 2)
    for name in ("inst_map", "trusted", "confidence"):
        one, other = getattr(saved, name), getattr(loaded, name)
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == [f"{tile_id}.npz"]


def test_names_that_differ_after_a_dot_do_not_meet(tmp_path):
    save_pseudo_masks(tmp_path, [mask("a.1", 1), mask("a.2", 2), mask("a", 3)])
    assert [len(load_pseudo_mask(tmp_path, name).confidence) for name in ("a.1", "a.2", "a")] == [1, 2, 3]


def test_a_second_cycle_replaces_the_first(tmp_path):
    save_pseudo_masks(tmp_path, [mask("a", 1)])
    save_pseudo_masks(tmp_path, [mask("a", 5)])
    assert len(load_pseudo_mask(tmp_path, "a").confidence) == 5


def test_a_write_that_fails_leaves_the_old_mask(tmp_path, monkeypatch):
    save_pseudo_masks(tmp_path, [mask("a", 1)])

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space"):
        save_pseudo_masks(tmp_path, [mask("a", 5)])
    assert len(load_pseudo_mask(tmp_path, "a").confidence) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_fingerprint_tells_sets_of_masks_apart_by_what_they_say(tmp_path):
    masks = [mask("a"), mask("b", 2)]
    print_of = fingerprint(masks)
    save_pseudo_masks(tmp_path, masks)
    assert fingerprint(load_pseudo_mask(tmp_path, name) for name in "ab") == print_of
    other_map = masks[0].inst_map.copy()
    other_map[7, 9] += 1
    sure = masks[0].confidence.copy()
    sure[0] = 0
    for changed in (
        {"inst_map": other_map},
        {"trusted": ~masks[0].trusted},
        {"confidence": sure},
        {"cycle": 3},
        {"tile_id": "c"},
        {"inst_map": masks[0].inst_map.reshape(50, 40)},
    ):
        assert fingerprint([dataclasses.replace(masks[0], **changed), masks[1]]) != print_of
    assert fingerprint(masks[::-1]) != print_of and fingerprint(masks[:1]) != print_of


@pytest.mark.parametrize("keep", [0, 10, 200, -30])
def test_a_torn_or_missing_mask_is_named(tmp_path, keep):
    with pytest.raises(DatasetError, match=r"a\.npz"):
        load_pseudo_mask(tmp_path, "a")
    save_pseudo_masks(tmp_path, [mask("a")])
    path = mask_path(tmp_path, "a")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DatasetError, match=r"a\.npz"):
        load_pseudo_mask(tmp_path, "a")


def test_flipped_bytes_and_foreign_archives_are_named(tmp_path):
    save_pseudo_masks(tmp_path, [mask("a")])
    path = mask_path(tmp_path, "a")
    whole = bytearray(path.read_bytes())
    refused = 0
    for position in range(0, len(whole), 37):
        damaged = whole.copy()
        damaged[position] ^= 0xFF
        path.write_bytes(damaged)
        try:
            load_pseudo_mask(tmp_path, "a")
        except DatasetError as error:
            refused += "a.npz" in str(error)
    assert refused > 10, "any other error would have failed the test"
    np.savez(path, other=np.zeros(3))
    with pytest.raises(DatasetError, match=r"a\.npz"):
        load_pseudo_mask(tmp_path, "a")

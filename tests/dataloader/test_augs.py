"""Augmentation: what moves together, what stays, and that a sample depends on its generator alone."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader import augs

REPOSITORY = Path(augs.__file__).parents[1]


def coded_tile(height=64, width=64):
    """An image whose red channel says which instance a pixel belongs to."""
    inst_map = np.zeros((height, width), np.int32)
    inst_map[8:30, 10:28], inst_map[35:60, 20:50], inst_map[4:20, 40:60] = 60, 120, 180
    image = np.full((height, width, 3), 90, np.uint8)
    image[..., 0] = inst_map
    return image, inst_map, np.ones((height, width), bool)


def test_imgaug_loads_and_leaves_numpy_as_it_was():
    code = (
        "import numpy as np, sys\n"
        "before = hasattr(np, 'sctypes')\n"
        "import dataloader.augs as augs\n"
        "assert 'imgaug' not in sys.modules\n"
        "assert augs.load_imgaug().Fliplr(1.0).augment_image(np.zeros((4, 4, 3), np.uint8)).shape == (4, 4, 3)\n"
        "assert hasattr(np, 'sctypes') == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_sctypes_goes_even_if_the_import_fails():
    before = hasattr(np, "sctypes")
    with pytest.raises(ImportError), augs._sctypes_present():
        assert hasattr(np, "sctypes")
        raise ImportError
    assert hasattr(np, "sctypes") == before


@pytest.mark.parametrize("strength", ["weak", "strong"])
def test_a_sample_is_reproducible_and_samples_differ(strength):
    tile = coded_tile()
    tile[0][...] = np.random.default_rng(0).integers(40, 220, tile[0].shape, dtype=np.uint8)
    first = augs.augment_tile(*tile, augs.sample_rng(1, 2, 3), strength)
    augs.augment_tile(*tile, augs.sample_rng(9, 9, 9), strength)
    again = augs.augment_tile(*tile, augs.sample_rng(1, 2, 3), strength)
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    for other in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert np.any(augs.augment_tile(*tile, augs.sample_rng(*other), strength).image != first.image)
    patches = [augs.augment_patch(tile[0], augs.sample_rng(*key)) for key in ((1, 2, 3), (1, 2, 3), (1, 2, 4))]
    np.testing.assert_array_equal(patches[0], patches[1])
    assert np.any(patches[0] != patches[2])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), affine=st.sampled_from([0.0, 1.0]))
def test_image_map_and_trust_move_together(seed, affine):
    tile = augs.LabelledTile(*coded_tile())
    moved = augs.augment_geometry(tile, np.random.default_rng(seed), affine)
    assert moved.image.dtype == np.uint8 and moved.inst_map.dtype == np.int32 and moved.trusted.dtype == bool
    assert set(np.unique(moved.inst_map)) <= {0, 60, 120, 180}
    assert not np.any(moved.inst_map[~moved.trusted])
    off = np.abs(moved.image[..., 0].astype(int) - moved.inst_map) > 30  # edges are interpolated in the image alone
    # At most one pixel on either side of an outline of about 260 px, however the tile is turned.
    assert np.sum(off & moved.trusted) < 300
    if not affine:
        assert moved.trusted.all() and not off.any()


def test_pixels_that_were_not_trusted_stay_so():
    image, inst_map, trusted = coded_tile()
    trusted[:, :32] = False
    image[:, :32, 1] = 0
    moved = augs.augment_geometry(augs.LabelledTile(image, inst_map, trusted), np.random.default_rng(0), affine=0.0)
    np.testing.assert_array_equal(moved.trusted, moved.image[..., 1] == 90)


def test_large_ids_survive_a_warp():
    image, inst_map, trusted = coded_tile()
    inst_map[inst_map > 0] += 2**30
    moved = augs.augment_geometry(augs.LabelledTile(image, inst_map, trusted), np.random.default_rng(1), affine=1.0)
    assert set(np.unique(moved.inst_map)) == {0, 2**30 + 60, 2**30 + 120, 2**30 + 180}


def test_a_warp_without_rotation_maps_centre_to_centre_and_scales():
    matrix = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    tile = augs.LabelledTile(*coded_tile())
    for one, two in zip(augs._warp(tile, matrix), tile, strict=True):
        np.testing.assert_array_equal(one, two)
    for seed in range(20):
        drawn = augs._random_affine((65, 41), np.random.default_rng(seed))
        np.testing.assert_allclose(drawn @ [20, 32, 1], [20, 32], atol=1e-9)
        assert 0.8**2 * 0.99 <= abs(np.linalg.det(drawn[:, :2])) <= 1.2**2


@pytest.mark.parametrize("shape", [(48, 80), (64, 64)])
def test_shapes_stay_and_inputs_are_not_written_to(shape):
    tile = coded_tile(64, 64)
    tile = tuple(np.ascontiguousarray(array[: shape[0], :]) for array in tile)
    before = [array.copy() for array in tile]
    for seed in range(6):
        moved = augs.augment_tile(*tile, np.random.default_rng(seed), "strong")
        assert moved.image.shape == tile[0].shape and moved.inst_map.shape == moved.trusted.shape == tile[1].shape
        assert all(array.flags.c_contiguous for array in moved if array is not None)
        assert augs.augment_patch(tile[0], np.random.default_rng(seed)).shape == tile[0].shape
    for array, old in zip(tile, before, strict=True):
        np.testing.assert_array_equal(array, old)


def test_colour_moves_no_pixel_and_strong_changes_more_than_weak():
    image, _, _ = coded_tile()
    change = {}
    for name in ("weak", "strong"):
        drawn = [augs.augment_colour(image, np.random.default_rng(s), name).astype(int) for s in range(12)]
        change[name] = np.mean([np.abs(d - image).mean() for d in drawn])
    assert 0 < change["weak"] < 0.5 * change["strong"] < 40


def test_an_unknown_strength_is_refused():
    with pytest.raises(ValueError, match="wild"):
        augs.strength_of("wild")


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), affine=st.sampled_from([0.0, 1.0]))
def test_types_move_with_their_nuclei(seed, affine):
    image, inst_map, trusted = coded_tile()
    tile = augs.LabelledTile(image, inst_map, trusted, (inst_map // 60).astype(np.uint8))
    moved = augs.augment_geometry(tile, np.random.default_rng(seed), affine)
    assert moved.type_map.dtype == np.uint8 and moved.type_map.max() > 0
    np.testing.assert_array_equal(moved.type_map, moved.inst_map // 60)
    untyped = augs.augment_geometry(tile._replace(type_map=None), np.random.default_rng(seed), affine)
    assert untyped.type_map is None
    np.testing.assert_array_equal(untyped.inst_map, moved.inst_map)

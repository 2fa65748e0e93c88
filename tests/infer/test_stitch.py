import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader.infer_loader import TilePatches
from infer.stitch import TileStitcher

SIDE = st.integers(1, 23)
SHAPES = st.tuples(st.integers(1, 9), st.integers(0, 8)).map(lambda s: ((s[0] + s[1],) * 2, (s[0],) * 2))


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDE, SIDE), SHAPES, st.integers(1, 5), st.booleans(), st.randoms())
def test_patches_cut_and_stitched_give_the_tile_back(tile_shape, shapes, batch_size, typed, order):
    (size, _), (out, _) = shapes
    image = np.random.default_rng(0).integers(0, 256, (*tile_shape, 3), dtype=np.uint8)
    patches = TilePatches(image, *shapes)
    stitcher = TileStitcher(patches.lattice, typed)
    cut = (size - out) // 2
    answers = []
    for batch in patches.batches(batch_size):
        assert batch.images.shape == (len(batch.indices), size, size, 3) and len(batch.indices) <= batch_size
        centres = batch.images[:, cut : cut + out, cut : cut + out].astype(np.float32)
        answers += list(zip(batch.indices, centres, strict=True))
    order.shuffle(answers)
    for index, centre in answers:
        stitcher.place(index, centre[..., 0], centre[..., 1:], centre[..., 2].astype(np.uint8) if typed else None)
    raw = stitcher.raw_maps()
    np.testing.assert_array_equal(raw.np_prob, image[..., 0])
    np.testing.assert_array_equal(raw.hv_map, image[..., 1:])
    assert raw.np_prob.dtype == raw.hv_map.dtype == np.float32
    if typed:
        np.testing.assert_array_equal(raw.type_map, image[..., 2])
    else:
        assert raw.type_map is None


def test_a_missing_patch_is_noticed():
    patches = TilePatches(np.zeros((20, 20, 3), np.uint8), (12, 12), (8, 8))
    stitcher = TileStitcher(patches.lattice, typed=False)
    for index in range(8):
        stitcher.place(index, np.zeros((8, 8), np.float32), np.zeros((8, 8, 2), np.float32), None)
    with pytest.raises(ValueError, match="1 of 9 patches are missing"):
        stitcher.raw_maps()


def test_type_probabilities_are_stitched_too():
    patches = TilePatches(np.zeros((13, 20, 3), np.uint8), (12, 12), (8, 8))
    wanted = np.random.default_rng(0).random((13, 20, 3)).astype(np.float16)
    stitcher = TileStitcher(patches.lattice, typed=True)
    nothing = np.zeros((8, 8), np.float32), np.zeros((8, 8, 2), np.float32), np.zeros((8, 8), np.uint8)
    for index in range(len(patches.lattice.corners)):
        box = patches.lattice.output_box(index)
        answer = np.zeros((8, 8, 3), np.float16)
        answer[: box.height, : box.width] = wanted[box.top : box.bottom, box.left : box.right]
        stitcher.place(index, *nothing, answer)
    raw = stitcher.raw_maps()
    assert raw.type_probs.dtype == np.float16
    np.testing.assert_array_equal(raw.type_probs, wanted)

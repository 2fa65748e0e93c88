import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloader.infer_loader import TilePatches
from hovernet_cyclic.core.types import whole_image
from infer.stitch import TileStitcher

SIDE = st.integers(1, 23)
SHAPES = st.tuples(st.integers(1, 9), st.integers(0, 8)).map(lambda s: ((s[0] + s[1],) * 2, (s[0],) * 2))


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDE, SIDE), SHAPES, st.integers(1, 5), st.booleans(), st.randoms())
def test_patches_cut_and_stitched_give_the_tile_back(tile_shape, shapes, batch_size, typed, order):
    (size, _), (out, _) = shapes
    image = np.random.default_rng(0).integers(0, 256, (*tile_shape, 3), dtype=np.uint8)
    patches = TilePatches(whole_image(image), *shapes)
    stitcher = TileStitcher(patches.lattice)
    cut = (size - out) // 2
    answers = []
    for indices in patches.batches(batch_size):
        assert len(indices) <= batch_size
        for index in indices:
            box = patches.lattice.input_box(index)
            assert (box.height, box.width) == (size, size)
            part = patches.image[box.top : box.bottom, box.left : box.right]
            answers.append((index, torch.from_numpy(part[cut : cut + out, cut : cut + out].copy())))
    order.shuffle(answers)
    for index, centre in answers:
        stitcher.place(index, centre[..., 0].float(), centre[..., 1:].float(), centre[..., 2] if typed else None)
    raw = stitcher.raw_maps()
    np.testing.assert_array_equal(raw.np_prob, image[..., 0])
    np.testing.assert_array_equal(raw.hv_map, image[..., 1:])
    assert raw.np_prob.dtype == raw.hv_map.dtype == np.float32
    if typed:
        np.testing.assert_array_equal(raw.type_map, image[..., 2])
    else:
        assert raw.type_map is None


def test_a_missing_patch_is_noticed():
    patches = TilePatches(whole_image(np.zeros((20, 20, 3), np.uint8)), (12, 12), (8, 8))
    stitcher = TileStitcher(patches.lattice)
    for index in range(8):
        stitcher.place(index, torch.zeros(8, 8), torch.zeros(8, 8, 2))
    with pytest.raises(ValueError, match="1 of 9 patches are missing"):
        stitcher.raw_maps()


def test_type_probabilities_are_stitched_too():
    patches = TilePatches(whole_image(np.zeros((13, 20, 3), np.uint8)), (12, 12), (8, 8))
    wanted = np.random.default_rng(0).random((13, 20, 3)).astype(np.float16)
    stitcher = TileStitcher(patches.lattice)
    nothing = torch.zeros(8, 8), torch.zeros(8, 8, 2), torch.zeros(8, 8, dtype=torch.uint8)
    for index in range(len(patches.lattice.corners)):
        box = patches.lattice.output_box(index)
        answer = np.zeros((8, 8, 3), np.float16)
        answer[: box.height, : box.width] = wanted[box.top : box.bottom, box.left : box.right]
        stitcher.place(index, *nothing, torch.from_numpy(answer))
    raw = stitcher.raw_maps()
    assert raw.type_probs.dtype == np.float16
    np.testing.assert_array_equal(raw.type_probs, wanted)

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.hovernet.net_desc import HoVerNet, count_parameters, input_shape, output_shape, patch_shapes, softmax_maps

GOLDEN = Path(os.environ.get("HOVERNET_CYCLIC_GOLDEN", Path(__file__).parents[4] / "shared" / "golden"))
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference's numbers are not here")


def weight_by_name(name, like):
    """The weights that the reference's outputs were computed with: any code can make them from the names."""
    if name.endswith(("unpool_mat", "num_batches_tracked")):
        return like
    shape = tuple(like.shape)
    normal = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF).standard_normal(shape)
    if len(shape) == 4:
        normal = normal / np.sqrt(shape[1] * shape[2] * shape[3])
    elif name.endswith("running_var"):
        normal = 1 + 0.1 * np.abs(normal)
    elif name.endswith(".weight"):
        normal = 1 + 0.1 * normal
    else:
        normal = 0.1 * normal
    return torch.from_numpy(normal.astype(np.float32))


@needs_golden
@pytest.mark.parametrize("case", ["original_none", "original_5", "fast_none", "fast_5"])
def test_state_dict_is_that_of_the_published_network(case):
    mode, types = case.split("_")
    with torch.device("meta"):
        net = HoVerNet(mode, None if types == "none" else int(types))
    expected = json.loads((GOLDEN / "parameters.json").read_text())[case]
    assert [[name, list(value.shape)] for name, value in net.state_dict().items()] == expected


@needs_golden
def test_forward_of_fast_equals_the_reference():
    net = HoVerNet("fast").eval()
    net.load_state_dict({name: weight_by_name(name, value) for name, value in net.state_dict().items()})
    images = np.random.RandomState(0).randint(0, 256, (2, 256, 256, 3)).astype(np.uint8)
    with torch.inference_mode():
        output = net(torch.from_numpy(images[:1].transpose(0, 3, 1, 2).astype(np.float32)))
    with np.load(GOLDEN / "forward_fast_none.npz") as golden:
        for name in ("np", "hv"):
            found = getattr(output, name).numpy()[:, :, ::2, ::2]
            np.testing.assert_allclose(found, golden[name][:1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("original", ((270, 270), (80, 80))), ("fast", ((256, 256), (164, 164))), ("small", ((256, 256), (192, 192)))],
)
def test_usual_patch_shapes(mode, expected):
    assert patch_shapes(mode) == expected
    assert output_shape(mode, expected[0]) == expected[1]


@given(mode=st.sampled_from(["original", "fast", "small"]), wanted=st.tuples(*[st.integers(1, 3000)] * 2))
def test_input_shape_is_the_smallest_that_covers(mode, wanted):
    shape = input_shape(mode, wanted)
    for got, want in zip(output_shape(mode, shape), wanted, strict=True):
        assert want <= got < want + 8


@pytest.mark.parametrize(("mode", "size"), [("original", 198), ("fast", 96), ("small", 72)])
def test_forward_has_the_promised_shape_at_the_smallest_and_other_sizes(mode, size):
    net = HoVerNet(mode, nr_types=3).eval()
    with torch.inference_mode():
        output = net(torch.zeros(1, 3, size, size + 8))
    height, width = output_shape(mode, (size, size + 8))
    assert output.np.shape == output.hv.shape == (1, 2, height, width)
    assert output.tp.shape == (1, 3, height, width)


@pytest.mark.parametrize(("mode", "size"), [("original", 272), ("fast", 270), ("small", 260), ("small", 64)])
def test_sizes_that_do_not_fit_are_named(mode, size):
    with pytest.raises(ValueError, match=f"{mode}.*{size}"):
        output_shape(mode, (size, size))
    if mode == "small":
        with pytest.raises(ValueError, match=str(size)):
            HoVerNet(mode)(torch.zeros(1, 3, size, size))


def test_small_is_small_and_without_types_has_no_tp():
    net = HoVerNet("small").eval()
    assert count_parameters(HoVerNet("small", 5)) < 1_100_000
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 72, 72)).tp is None


def test_output_lies_at_the_centre_of_the_input():
    """With every weight positive the network only blurs: a bright spot comes out where it went in."""
    net = HoVerNet("small").eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.fill_(1 / module.weight[0].numel())
    images = torch.full((1, 3, 200, 232), 200.0)
    marked = images.clone()
    marked[..., 96:104, 140:148] = 255
    with torch.inference_mode():
        change = (net(marked).np - net(images).np)[0, 1]
    rows, columns = torch.meshgrid(torch.arange(136.0), torch.arange(168.0), indexing="ij")
    assert float((rows * change).sum() / change.sum()) == pytest.approx(99.5 - 32, abs=4)
    assert float((columns * change).sum() / change.sum()) == pytest.approx(143.5 - 32, abs=4)


def test_patches_that_overlap_agree_where_both_see_enough():
    """Moving the input by the coarsest stride moves the output, but for what padding reaches."""
    torch.manual_seed(0)
    net = HoVerNet("small").eval()
    images = torch.rand(1, 3, 264, 256) * 255
    with torch.inference_mode():
        first, second = net(images[:, :, :256]).np, net(images[:, :, 8:]).np
    difference = (first[:, :, 8:] - second[:, :, :-8]).abs()
    assert float(difference[:, :, 60:-60].max()) < 1e-4 < float(second.abs().max())


def test_every_layer_of_small_learns():
    net = HoVerNet("small", 3)
    output = net(torch.rand(2, 3, 72, 72) * 255)
    sum(part.square().mean() for part in output).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_small_starts_without_a_checkerboard():
    with torch.inference_mode():
        hv = HoVerNet("small").eval()(torch.rand(1, 3, 72, 80) * 255).hv
    blocks = hv.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    assert torch.equal(blocks.amax(4), blocks.amin(4)) and hv.std() > 0


def test_softmax_maps_by_hand():
    net = HoVerNet("small", 3).eval()
    with torch.inference_mode():
        output = net(torch.rand(2, 3, 72, 80) * 255)
        np_prob, hv_map, type_map = softmax_maps(output)
    assert np_prob.shape == (2, 8, 16) and hv_map.shape == (2, 8, 16, 2) and type_map.dtype == torch.uint8
    odds = (output.np[:, 1] - output.np[:, 0]).exp()
    assert torch.allclose(np_prob, odds / (1 + odds), atol=1e-5)
    assert torch.equal(hv_map[..., 1], output.hv[:, 1])
    assert torch.equal(type_map.long(), output.tp.argmax(1))

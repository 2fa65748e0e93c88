import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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


class PlainHoVerNet:
    """The published network once more, without modules: each layer by its name, each crop by its size."""

    def __init__(self, weights, mode):
        self.weights, self.ksize = weights, 5 if mode == "original" else 3
        self.pads_first, self.crops = mode == "fast", (184, 72) if mode == "original" else (92, 36)

    def conv(self, x, name, **how):
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"), **how)

    def bn_relu(self, x, name):
        mean, var, scale, shift = (
            self.weights[f"{name}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return torch.relu((x - mean) / torch.sqrt(var + 1e-5) * scale + shift)

    def tf_same(self, x, ksize, stride=1):
        total = max(ksize - (x.shape[2] % stride or stride), 0)
        return F.pad(x, (total // 2, total - total // 2) * 2)

    def residual(self, x, name, units, stride):
        total = self.conv(x, f"{name}.shortcut", stride=stride)
        for index in range(units):
            unit, step = f"{name}.units.{index}", stride if index == 0 else 1
            x = self.bn_relu(x, f"{unit}.preact/bn") if index else x
            x = self.bn_relu(self.conv(x, f"{unit}.conv1"), f"{unit}.conv1/bn")
            x = self.bn_relu(self.conv(self.tf_same(x, 3, step), f"{unit}.conv2", stride=step), f"{unit}.conv2/bn")
            x = total = self.conv(x, f"{unit}.conv3") + total
        return self.bn_relu(x, f"{name}.blk_bna.bn")

    def dense(self, x, name, units):
        for index in range(units):
            unit, cut = f"{name}.dense.units.{index}", self.ksize // 2
            new = self.bn_relu(self.conv(self.bn_relu(x, f"{unit}.preact_bna/bn"), f"{unit}.conv1"), f"{unit}.conv1/bn")
            x = torch.cat([x[:, :, cut:-cut, cut:-cut], self.conv(new, f"{unit}.conv2", groups=4)], 1)
        return self.conv(self.bn_relu(x, f"{name}.dense.blk_bna.bn"), f"{name}.convf")

    def __call__(self, images, branches):
        x = images / 255
        x = self.bn_relu(self.conv(self.tf_same(x, 7) if self.pads_first else x, "conv0./"), "conv0.bn")
        features = []
        for block, (units, stride) in enumerate(((3, 1), (4, 2), (6, 2), (3, 2))):
            x = self.residual(x, f"d{block}", units, stride)
            features.append(x)
        d0, d1 = (
            x[:, :, cut // 2 : -cut // 2, cut // 2 : -cut // 2] for x, cut in zip(features, self.crops, strict=False)
        )
        bottom = self.conv(features[3], "conv_bot")
        return {branch: self.decode(f"decoder.{branch}", (d0, d1, features[2], bottom)) for branch in branches}

    def decode(self, name, features):
        d0, d1, d2, x = features
        x = self.dense(self.conv(twice(x) + d2, f"{name}.u3.conva"), f"{name}.u3", 8)
        x = self.dense(self.conv(twice(x) + d1, f"{name}.u2.conva"), f"{name}.u2", 4)
        x = self.conv(self.tf_same(twice(x) + d0, self.ksize), f"{name}.u1.conva")
        return self.conv(self.bn_relu(x, f"{name}.u0.bn"), f"{name}.u0.conv")


def twice(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


@pytest.mark.parametrize(("mode", "nr_types", "size"), [("original", 5, 198), ("fast", 6, 104)])
def test_forward_equals_the_published_network_layer_by_layer(mode, nr_types, size):
    net = HoVerNet(mode, nr_types).eval()
    weights = {name: weight_by_name(name, value) for name, value in net.state_dict().items()}
    net.load_state_dict(weights)
    images = np.random.RandomState(1).randint(0, 256, (1, 3, size, size)).astype(np.float32)
    with torch.inference_mode():
        output = net(torch.from_numpy(images))
        expected = PlainHoVerNet(weights, mode)(torch.from_numpy(images), ("tp", "np", "hv"))
    for branch, values in expected.items():
        assert values.std() > 0.1
        torch.testing.assert_close(getattr(output, branch), values, rtol=0, atol=1e-5)


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

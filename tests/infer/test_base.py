import numpy as np
import pytest
import torch

from hovernet_cyclic.core.errors import RecipeError
from infer.base import NetworkSegmenter
from models.hovernet.net_desc import HoVerNet, patch_shapes


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    return {nr_types: HoVerNet("small", nr_types) for nr_types in (None, 4)}


def picture(height, width):
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_answer_does_not_depend_on_the_batch_size(nets, dtype):
    image = picture(250, 400)
    answers = [NetworkSegmenter(nets[4], "small", "cpu", size, dtype).raw_maps(image) for size in (1, 4, 64)]
    for answer in answers[1:]:
        np.testing.assert_array_equal(answer.np_prob, answers[0].np_prob)
        np.testing.assert_array_equal(answer.hv_map, answers[0].hv_map)
        np.testing.assert_array_equal(answer.type_map, answers[0].type_map)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (2, 3), (192, 192), (193, 31)])
def test_images_of_any_size(nets, shape):
    raw = NetworkSegmenter(nets[None], "small", "cpu").raw_maps(picture(*shape))
    assert raw.np_prob.shape == shape and raw.hv_map.shape == (*shape, 2) and raw.type_map is None
    assert raw.np_prob.dtype == raw.hv_map.dtype == np.float32
    assert np.isfinite(raw.hv_map).all() and raw.hv_map.any(axis=2).all()  # every pixel was answered for
    assert (raw.np_prob >= 0).all() and (raw.np_prob <= 1).all()


def test_one_patch_is_the_network_itself(nets):
    net = nets[4]
    shapes = patch_shapes("small")
    image = picture(*shapes.output)
    border = (shapes.input[0] - shapes.output[0]) // 2
    padded = np.pad(image, ((border, border), (border, border), (0, 0)), mode="reflect")
    with torch.inference_mode():
        output = net.eval()(torch.from_numpy(padded).permute(2, 0, 1)[None].float())
    raw = NetworkSegmenter(net, "small", "cpu").raw_maps(image)
    np.testing.assert_allclose(raw.np_prob, output.np.softmax(1)[0, 1], atol=1e-5)
    np.testing.assert_allclose(raw.hv_map, output.hv[0].permute(1, 2, 0), atol=1e-5)
    assert np.mean(raw.type_map == output.tp[0].argmax(0).numpy()) > 0.9999


def test_a_network_in_training_stays_in_training_and_keeps_its_statistics(nets):
    net = nets[None].train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    NetworkSegmenter(net, "small", "cpu").raw_maps(picture(20, 20))
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_batch_of_none_is_refused(nets):
    with pytest.raises(RecipeError, match="batch size is 0"):
        NetworkSegmenter(nets[None], "small", "cpu", batch_size=0)


def test_a_network_that_tells_types_tells_how_sure_it_is(nets):
    raw = NetworkSegmenter(nets[4], "small", "cpu").raw_maps(picture(60, 205))
    assert raw.type_probs.shape == (60, 205, 4) and raw.type_probs.dtype == np.float16
    np.testing.assert_allclose(raw.type_probs.sum(-1, dtype=np.float64), 1, atol=3e-3)
    highest = np.take_along_axis(raw.type_probs, raw.type_map[..., None].astype(np.int64), -1)[..., 0]
    np.testing.assert_array_equal(highest, raw.type_probs.max(-1))
    assert NetworkSegmenter(nets[None], "small", "cpu").raw_maps(picture(9, 9)).type_probs is None

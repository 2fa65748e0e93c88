import os
from pathlib import Path

import numpy as np
import pytest
import torch

from dataloader.images import read_rgb
from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.geometry import grow
from hovernet_cyclic.core.types import Box, Pixels, RawMaps
from infer.base import NetworkSegmenter, ReferenceSegmenter
from models.hovernet.net_desc import HoVerNet, crop_output, margin
from models.hovernet.post_proc import segment

DATA = Path(os.environ.get("HOVERNET_CYCLIC_DATA", Path(__file__).parents[3] / "shared" / "data"))


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
    net, image = nets[4], picture(160, 200)
    padded = np.pad(image, ((72, 72), (72, 72), (0, 0)), mode="reflect")
    with torch.inference_mode():
        output = crop_output(net.eval()(torch.from_numpy(padded).permute(2, 0, 1)[None].float()), (160, 200))
    raw = NetworkSegmenter(net, "small", "cpu").raw_maps(image)
    np.testing.assert_allclose(raw.np_prob, output.np.softmax(1)[0, 1], atol=1e-5)
    np.testing.assert_allclose(raw.hv_map, output.hv[0].permute(1, 2, 0), atol=1e-5)
    assert np.mean(raw.type_map == output.tp[0].argmax(0).numpy()) > 0.9999


def same(first, second, atol):
    np.testing.assert_allclose(first.np_prob, second.np_prob, rtol=0, atol=atol)
    np.testing.assert_allclose(first.hv_map, second.hv_map, rtol=0, atol=atol)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_answer_does_not_depend_on_the_size_of_patches(nets, dtype, rounding):
    """But for rounding: kernels are chosen by size. With a margin of 32 px it differs by 0.1 and more."""
    image = picture(250, 330)
    whole, *others = (
        NetworkSegmenter(nets[None], "small", "cpu", dtype=dtype, largest_patch=side) for side in (None, 300, 208)
    )
    assert [segmenter.cell((250, 330)) for segmenter in (whole, *others)] == [(256, 336), (128, 128), (64, 64)]
    for segmenter in others:
        same(segmenter.raw_maps(image), whole.raw_maps(image), rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [Box(0, 0, 64, 64), Box(64, 128, 201, 330), Box(192, 0, 250, 330)])
def test_a_window_of_an_image_gets_what_the_whole_gets(nets, dtype, window):
    image = picture(250, 330)
    segmenter = NetworkSegmenter(nets[None], "small", "cpu", dtype=dtype)
    read = grow(window, segmenter.margin, within=Box(0, 0, 250, 330))
    part = image[read.top : read.bottom, read.left : read.right]
    answer = segmenter.raw_maps_of(Pixels(part, read, (250, 330), window))
    whole = segmenter.raw_maps(image)
    rows, columns = slice(window.top, window.bottom), slice(window.left, window.right)
    same(answer, RawMaps(whole.np_prob[rows, columns], whole.hv_map[rows, columns]), atol=0)


@pytest.mark.parametrize("mode", ["small", "fast"])
def test_nothing_beyond_the_margin_changes_an_answer(mode):
    """Zeros next to the image stand in for what convolutions pad: were they seen, the answer would change."""
    torch.manual_seed(0)
    net, answered = HoVerNet(mode).eval(), 8
    side = answered + 2 * margin(mode)
    images = torch.randint(0, 256, (1, 3, side, side)).float()
    with torch.no_grad():
        answer = crop_output(net(images), (answered, answered))
        wider = crop_output(net(torch.nn.functional.pad(images, (8, 8, 8, 8), value=255)), (answered, answered))
    np.testing.assert_allclose(wider.np, answer.np, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(wider.hv, answer.hv, rtol=1e-3, atol=1e-4)


class Greedy:
    """Lets a network fail for want of memory on more than `limit` px of input at a time, as torch does."""

    def __init__(self, net, limit, message="CUDA out of memory. Tried to allocate 2.00 GiB"):
        self._answer, self.limit, self.error, self.seen = net.forward, limit, torch.OutOfMemoryError(message), []
        net.forward = self

    def __call__(self, images):
        self.seen.append(tuple(images.shape))
        if images.shape[0] * images.shape[-1] * images.shape[-2] > self.limit:
            raise self.error
        return self._answer(images)


def test_when_memory_is_short_in_the_middle_nothing_is_lost(capsys):
    torch.manual_seed(0)
    net, image = HoVerNet("small"), picture(600, 200)
    wanted = NetworkSegmenter(net, "small", "cpu").raw_maps(image)
    segmenter = NetworkSegmenter(net, "small", "cpu", 2, largest_patch=464)
    greedy = Greedy(net, limit=300 * 344)
    same(segmenter.raw_maps(image), wanted, 1e-5)
    said = capsys.readouterr().err
    assert "1 patches at a time" in said and "patches of 232 px in place of 464 px" in said and "cpu" in said
    before = len(greedy.seen)
    segmenter.raw_maps(image)
    assert capsys.readouterr().err == "" and max(greedy.seen[before:])[-1] <= 232  # it has learnt


class Tiring(Greedy):
    """Its memory suffices for the first three patches, and then for smaller ones."""

    def __call__(self, images):
        if len(self.seen) == 3:
            self.limit = 300 * 344
        return super().__call__(images)


def test_nor_is_what_was_answered_before_memory_became_short(capsys):
    torch.manual_seed(0)
    net, image = HoVerNet("small"), picture(1300, 200)
    wanted = NetworkSegmenter(net, "small", "cpu").raw_maps(image)
    segmenter = NetworkSegmenter(net, "small", "cpu", 1, largest_patch=464)
    tiring = Tiring(net, limit=10**9)
    same(segmenter.raw_maps(image), wanted, 1e-5)
    assert len(tiring.seen) > 4 and tiring.seen[2][-2] > tiring.seen[4][-2]
    assert "in place of" in capsys.readouterr().err


def test_memory_that_suffices_for_nothing_is_an_error(nets):
    net = HoVerNet("small")
    Greedy(net, limit=10)
    with pytest.raises(torch.OutOfMemoryError):
        NetworkSegmenter(net, "small", "cpu").raw_maps(picture(90, 90))
    net = HoVerNet("small")
    Greedy(net, limit=10).error = RuntimeError("a fault of another kind")
    with pytest.raises(RuntimeError, match="another kind"):
        NetworkSegmenter(net, "small", "cpu").raw_maps(picture(90, 90))


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


def reference_maps(net, image, win, step):
    """hover_net's own way with a tile: reflected all round, patches of `win` px whose middles of `step` px abut."""
    height, width = image.shape[:2]
    before, rows, columns = (win - step) // 2, -(-height // step) * step, -(-width // step) * step
    after = ((before, before + rows - height + step), (before, before + columns - width + step), (0, 0))
    padded = np.pad(image, after, mode="reflect")
    maps = np.zeros((rows, columns, 3), np.float32)
    for top in range(0, rows, step):
        for left in range(0, columns, step):
            patch = torch.from_numpy(padded[top : top + win, left : left + win]).permute(2, 0, 1)[None].float()
            with torch.inference_mode():
                output = net(patch)
            maps[top : top + step, left : left + step, 0] = output.np.softmax(1)[0, 1]
            maps[top : top + step, left : left + step, 1:] = output.hv[0].permute(1, 2, 0)
    return maps[:height, :width]


def test_the_reference_lattice_answers_as_hover_net_does():
    """With zeros at each patch's border, as published networks know it; large patches answer otherwise."""
    torch.manual_seed(3)
    net, image = HoVerNet("fast").eval(), picture(60, 180)
    for branch in net.decoder.values():
        branch.u0.conv.weight.data *= 1e-4  # random weights answer in thousands, which leaves rounding alone to compare
    expected = reference_maps(net, image, 256, 164)
    raw = ReferenceSegmenter(net, "fast", "cpu").raw_maps(image)
    np.testing.assert_allclose(raw.np_prob, expected[..., 0], atol=1e-4)
    np.testing.assert_allclose(raw.hv_map, expected[..., 1:], atol=1e-4 * np.abs(expected).max())
    large = NetworkSegmenter(net, "fast", "cpu").raw_maps(image)
    assert np.abs(large.hv_map - expected[..., 1:]).max() > 1e-3 * np.abs(expected).max()


def test_where_memory_is_short_the_reference_lattice_keeps_its_patches(monkeypatch, capsys):
    segmenter = ReferenceSegmenter(HoVerNet("small"), "small", "cpu", 2)

    def refuse(images):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(segmenter, "_answer", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        segmenter.raw_maps(picture(200, 200))
    assert segmenter.batch_size == 1 and segmenter.cell((200, 200)) == (192, 192)
    assert capsys.readouterr().err.count("1 patches at a time") == 1


def shares(first, second):
    """Of each nucleus of the first map: its best IoU with one of the second."""
    both = (first > 0) & (second > 0)
    pairs, common = np.unique(np.stack([first[both], second[both]]), axis=1, return_counts=True)
    areas = [np.bincount(inst_map.ravel()) for inst_map in (first, second)]
    best = np.zeros(areas[0].size)
    np.maximum.at(best, pairs[0], common / (areas[0][pairs[0]] + areas[1][pairs[1]] - common))
    return best[np.unique(first[first > 0])]


@pytest.mark.skipif(not DATA.is_dir(), reason="no real tiles are here")
def test_the_frozen_network_finds_the_same_nuclei_on_a_real_tile():
    torch.manual_seed(3)
    net = HoVerNet("small")
    with torch.no_grad():
        net.decoder["np"].head.weight *= 20  # so that an untrained network is not undecided everywhere
        net.decoder["hv"].head.weight *= 5
    image = read_rgb(sorted((DATA / "monuseg" / "images").glob("*.png"))[0])[:400, :400]
    plain, fast = (
        segment(NetworkSegmenter(net, "small", "cpu", frozen=frozen, largest_patch=side).raw_maps(image))
        for frozen, side in ((False, None), (True, 336))
    )
    found = shares(plain, fast)
    assert len(found) > 20 and (found > 0.99).mean() >= 0.995

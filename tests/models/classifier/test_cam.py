"""Activation maps: in a tile's own frame, on one scale for all tiles, and where the class is."""

import copy

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hovernet_cyclic.core.types import ImageTile
from models.classifier.cam import METHODS, _gamma_rule, activation_map
from models.classifier.net_desc import Classifier

CPU = torch.device("cpu")
# px that the receptive field of a map reaches to each side: strides 2 and 4 for evidence, 8 for cam
REACH = {"evidence": 40, "cam": 80}


def tile(image):
    return ImageTile("t", image, 0.25)


def noise(height, width, seed=0):
    grains = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(grains, None, fx=4, fy=4)[:height, :width])


@pytest.fixture(scope="module")
def untrained():
    """Random weights, but batch statistics that fit its images: without them every method gives the same noise."""
    torch.manual_seed(0)
    classifier = Classifier("small", nr_classes=2)
    classifier.train()
    with torch.no_grad():
        for seed in range(4):
            classifier(torch.from_numpy(noise(64, 64, seed)).permute(2, 0, 1)[None].float())
    return classifier.eval()


def spotted(side, centres, seed):
    """Tissue of eosin with discs of haematoxylin: uint8 (side, side, 3), and bool (side, side) of the discs."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), (225, 160, 200), np.uint8) + rng.integers(-12, 12, (side, side, 1))
    mask = np.zeros((side, side), np.uint8)
    for centre in centres:
        cv2.circle(mask, centre, 8, 1, cv2.FILLED)
    image = np.where(mask[..., None] > 0, np.array([95, 65, 150]), image)
    return cv2.GaussianBlur(image.astype(np.uint8), (0, 0), 1.0), mask > 0


@pytest.fixture(scope="module")
def trained():
    """Thirty steps on patches with one disc or none, told only which is which: by the evidence and the patch label."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    classifier = Classifier("small").train()
    optimiser = torch.optim.AdamW(classifier.parameters(), 2e-3)
    for step in range(30):
        rows = []
        for i in range(8):
            centres = [tuple(int(c) for c in rng.integers(10, 38, 2))] * (i % 2)
            rows.append(spotted(48, centres, seed=100 * step + i)[0])
        images = torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).float()
        labels = torch.arange(8) % 2 * 1.0
        output = classifier(images)
        loss = F.binary_cross_entropy_with_logits(output.patch_logits[:, 0], labels)
        for head in output.evidence:
            pooled = head.flatten(2).topk(8).values.mean(2)[:, 0]
            loss = loss + F.binary_cross_entropy_with_logits(pooled, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return classifier.eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(64, 64), (37, 50), (8, 9), (65, 23)])
def test_every_method_gives_a_finite_map_of_each_class_at_the_tiles_resolution(method, shape, untrained):
    found = activation_map(untrained, tile(noise(*shape)), method, CPU)
    assert found.tile_id == "t"
    assert found.evidence.shape == (2, *shape) and found.evidence.dtype == np.float32
    assert np.isfinite(found.evidence).all()
    assert found.probability.shape == (2,) and np.all((found.probability > 0) & (found.probability < 1))


@pytest.mark.parametrize("method", ["cam", "grad_cam", "layer_cam", "lrp"])
def test_the_other_maps_are_read_off_the_patch_head(method, untrained):
    """Twice the class weights, twice the map: no map is rescaled by its own range."""
    doubled = copy.deepcopy(untrained)
    with torch.no_grad():
        for parameter in doubled.patch_head.parameters():
            parameter.mul_(2)
    once, twice = (activation_map(net, tile(noise(64, 64)), method, CPU).evidence for net in (untrained, doubled))
    assert np.abs(once).max() > 0
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-3, atol=1e-3 * np.abs(once).max())


@pytest.mark.parametrize("method", REACH)
def test_a_map_does_not_depend_on_what_lies_far_away(method, untrained):
    reach = REACH[method]
    window = slice(reach, 264 - reach), slice(reach, 256 - reach)
    image = noise(264, 256, seed=1)
    other = np.zeros_like(image)
    other[:] = noise(264, 256, seed=2)
    other[: 2 * reach + 64, : 2 * reach + 64] = image[: 2 * reach + 64, : 2 * reach + 64]
    one, two = (activation_map(untrained, tile(shown), method, CPU).evidence for shown in (image, other))
    near = slice(None), slice(0, reach + 64), slice(0, reach + 64)
    np.testing.assert_allclose(one[near], two[near], atol=1e-4)
    assert not np.allclose(one, two, atol=1e-2)
    crop = image[16:, 24:]
    cropped = activation_map(untrained, tile(np.ascontiguousarray(crop)), method, CPU).evidence
    inner = (slice(None), slice(16 + reach, 264 - reach), slice(24 + reach, 256 - reach))
    moved = (slice(None), slice(reach, 264 - reach - 16), slice(reach, 256 - reach - 24))
    np.testing.assert_allclose(one[inner], cropped[moved], atol=1e-4)
    assert one[(slice(None), *window)].std() > 0


@pytest.mark.parametrize("method", REACH)
@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_constant_tile_keeps_a_constant_map(method, grey, untrained):
    found = activation_map(untrained, tile(np.full((200, 200, 3), grey, np.uint8)), method, CPU).evidence
    middle = found[:, 88:112, 88:112]
    np.testing.assert_allclose(middle, middle[:, :1, :1] * np.ones_like(middle), atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_the_evidence_is_largest_in_the_disc(seed, trained):
    centres = [(24 + 12 * seed, 60)]
    image, mask = spotted(96, centres, seed=9000 + seed)
    evidence = activation_map(trained, tile(image), "evidence", CPU).evidence[0]
    assert mask[np.unravel_index(evidence.argmax(), mask.shape)]
    assert evidence[mask].mean() > evidence[~mask].mean() + 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_points_at_the_discs(method, trained):
    image, mask = spotted(96, [(30, 30), (66, 60)], seed=9100)
    found = activation_map(trained, tile(image), method, CPU).evidence[0]
    near = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert found[near].mean() > found[~near].mean() + 0.2 * found.std()


def test_relevance_is_handed_down_as_the_class_map_stands(trained):
    """Inside the rule the network answers as outside it, and it is left as it was."""
    images = torch.from_numpy(spotted(64, [(30, 30)], seed=1)[0]).permute(2, 0, 1)[None].float()
    plain = trained(images)
    with _gamma_rule(trained):
        ruled = trained(images)
        assert any(module._forward_hooks for module in trained.modules())
    torch.testing.assert_close(ruled.class_map, plain.class_map, rtol=1e-3, atol=1e-3)
    assert not any(module._forward_hooks for module in trained.modules())


def test_an_unknown_method_is_refused(untrained):
    with pytest.raises(KeyError):
        activation_map(untrained, tile(noise(16, 16)), "guess", CPU)

import math

import pytest
import torch

from models.hovernet.losses import bce, consistency, dice, hv_gradient, mse, msge


def everywhere(shape=(1, 2, 2)):
    return torch.ones(shape, dtype=torch.bool)


def logits_of(prob):
    """(B, h, w) probabilities of class 1 -> logits (B, 2, h, w)."""
    return torch.stack([torch.zeros_like(prob), torch.logit(prob)], 1)


PROB = torch.tensor([[[0.9, 0.2], [0.5, 0.7]]])
TRUE = torch.tensor([[[1, 0], [0, 1]]])


def test_bce_by_hand():
    expected = -(math.log(0.9) + math.log(0.8) + math.log(0.5) + math.log(0.7)) / 4
    assert float(bce(logits_of(PROB), TRUE, everywhere())) == pytest.approx(expected, rel=1e-5)
    trusted = torch.tensor([[[True, False], [True, False]]])
    expected = -(math.log(0.9) + math.log(0.5)) / 2
    assert float(bce(logits_of(PROB), TRUE, trusted)) == pytest.approx(expected, rel=1e-5)


def test_bce_takes_types():
    logits = torch.zeros(1, 5, 2, 2)
    assert float(bce(logits, torch.full((1, 2, 2), 4), everywhere())) == pytest.approx(math.log(5))


def test_dice_by_hand():
    nucleus = 1 - (2 * (0.9 + 0.7) + 1e-3) / ((0.9 + 0.2 + 0.5 + 0.7) + 2 + 1e-3)
    background = 1 - (2 * (0.8 + 0.5) + 1e-3) / ((0.1 + 0.8 + 0.5 + 0.3) + 2 + 1e-3)
    assert float(dice(logits_of(PROB), TRUE, everywhere())) == pytest.approx(nucleus + background, rel=1e-5)
    trusted = torch.tensor([[[True, True], [False, False]]])
    nucleus = 1 - (2 * 0.9 + 1e-3) / (0.9 + 0.2 + 1 + 1e-3)
    background = 1 - (2 * 0.8 + 1e-3) / (0.1 + 0.8 + 1 + 1e-3)
    assert float(dice(logits_of(PROB), TRUE, trusted)) == pytest.approx(nucleus + background, rel=1e-5)


def test_mse_by_hand():
    hv, true = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    hv[0, :, 0, 0], true[0, 0, 0, 0] = torch.tensor([0.5, -1.0]), 1.0
    assert float(mse(hv, true, everywhere())) == pytest.approx((0.25 + 1.0) / 8)
    only = torch.zeros(1, 2, 2, dtype=torch.bool)
    only[0, 0, 0] = True
    assert float(mse(hv, true, only)) == pytest.approx((0.25 + 1.0) / 2)


def test_gradient_of_a_ramp_by_hand():
    """Of a map that grows by 1 a column: the sum over the kernel of x * x / (x^2 + y^2)."""
    slope = sum(x * x / (x * x + y * y) for x in range(-2, 3) for y in range(-2, 3) if x or y)
    ramp = torch.arange(9.0).expand(9, 9)
    hv = torch.stack([ramp, ramp.T])[None]
    gradient = hv_gradient(hv)
    assert torch.allclose(gradient[0, :, 4, 4], torch.tensor([slope, slope]))
    across = hv_gradient(torch.stack([ramp.T, ramp])[None])
    assert torch.allclose(across[0, :, 4, 4], torch.zeros(2), atol=1e-5)


def reference_msge(true, pred, focus):
    """The formula written out: squared difference of the gradients, over the nuclei, per branch."""
    kernel = torch.tensor([[x / (x * x + y * y + 1e-15) for x in range(-2, 3)] for y in range(-2, 3)])
    total = 0.0
    for channel, weights in ((0, kernel), (1, kernel.T)):
        gradients = [
            torch.nn.functional.conv2d(hv[:, channel : channel + 1], weights[None, None], padding=2)[:, 0]
            for hv in (true, pred)
        ]
        total += float(((gradients[0] - gradients[1]) ** 2 * focus).sum())
    return total / (2 * float(focus.sum()) + 1e-8)


def test_msge_equals_the_formula():
    generator = torch.Generator().manual_seed(0)
    true, pred = (torch.randn(2, 2, 12, 14, generator=generator) for _ in range(2))
    np_map = (torch.rand(2, 12, 14, generator=generator) > 0.5).long()
    trusted = torch.rand(2, 12, 14, generator=generator) > 0.3
    everything = torch.ones_like(trusted)
    assert float(msge(pred, true, np_map, everything)) == pytest.approx(reference_msge(true, pred, np_map), rel=1e-5)
    expected = reference_msge(true, pred, np_map * trusted)
    assert float(msge(pred, true, np_map, trusted)) == pytest.approx(expected, rel=1e-5)


def authors_losses(np_logits, hv, true_np, true_hv):
    """As the authors compute them, channels last: of np the cross-entropy and Dice, of hv both squared errors."""
    true = torch.nn.functional.one_hot(true_np, np_logits.shape[1]).float()
    prob = np_logits.permute(0, 2, 3, 1).softmax(-1)
    clipped = (prob / prob.sum(-1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
    overlap, total = (prob * true).sum((0, 1, 2)), prob.sum((0, 1, 2)) + true.sum((0, 1, 2))
    return {
        "bce": -(true * clipped.log()).sum(-1).mean(),
        "dice": (1 - (2 * overlap + 1e-3) / (total + 1e-3)).sum(),
        "mse": ((hv - true_hv) ** 2).mean(),
        "msge": torch.tensor(reference_msge(true_hv, hv, true_np > 0)),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 6])
def test_where_all_is_trusted_the_losses_are_the_authors(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, classes, 20, 24, generator=generator)
    true = torch.randint(0, classes if seed else 1, (3, 20, 24), generator=generator)  # the first is all background
    hv, true_hv = (torch.randn(3, 2, 20, 24, generator=generator) for _ in range(2))
    trusted = everywhere(true.shape)
    found = {
        "bce": bce(logits, true, trusted),
        "dice": dice(logits, true, trusted),
        "mse": mse(hv, true_hv, trusted),
        "msge": msge(hv, true_hv, true, trusted),
    }
    for name, expected in authors_losses(logits, hv, true, true_hv).items():
        assert float(found[name]) == pytest.approx(float(expected), rel=1e-5, abs=1e-7), name


def test_consistency_by_hand_and_only_for_the_student():
    student, teacher = logits_of(PROB), logits_of(torch.full_like(PROB, 0.5))
    student.requires_grad_()
    teacher.requires_grad_()
    mask = torch.tensor([[[True, True], [False, False]]])
    loss = consistency(student, teacher, mask)
    assert float(loss.detach()) == pytest.approx((0.4**2 + 0.3**2) / 2, rel=1e-5)
    loss.backward()
    assert teacher.grad is None and student.grad[0, :, 0].abs().sum() > 0 and not student.grad[0, :, 1].any()


LOSSES = {
    "bce": lambda x, trusted: bce(x, TRUE, trusted),
    "dice": lambda x, trusted: dice(x, TRUE, trusted),
    "mse": lambda x, trusted: mse(x, torch.ones(1, 2, 2, 2), trusted),
    "msge": lambda x, trusted: msge(x, torch.ones(1, 2, 2, 2), torch.ones(1, 2, 2), trusted),
    "consistency": lambda x, trusted: consistency(
        x, torch.ones(1, 2, 2, 2) * torch.tensor([1.0, -1])[:, None, None], trusted
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_no_trusted_pixel_means_no_loss_and_no_nan(name):
    prediction = torch.randn(1, 2, 2, 2, generator=torch.Generator().manual_seed(0), requires_grad=True)
    loss = LOSSES[name](prediction, ~everywhere())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-7)
    assert torch.isfinite(prediction.grad).all() and not prediction.grad.any()


@pytest.mark.parametrize("name", ["bce", "dice", "mse", "consistency"])
def test_pixels_that_are_not_trusted_do_not_count(name):
    trusted = torch.tensor([[[True, True], [True, False]]])
    prediction = torch.zeros(1, 2, 2, 2)
    other = prediction.clone()
    other[0, 0, 1, 1] = 50.0
    assert float(LOSSES[name](prediction, trusted)) == float(LOSSES[name](other, trusted))
    assert float(LOSSES[name](prediction, everywhere())) != float(LOSSES[name](other, everywhere()))


@pytest.mark.parametrize("name", LOSSES)
def test_low_precision_comes_out_as_float32(name):
    prediction = torch.zeros(1, 2, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    assert LOSSES[name](prediction, everywhere()).dtype == torch.float32

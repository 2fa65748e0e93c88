"""The schedule works for every number of steps that a recipe can ask for."""

import copy

import pytest
import torch

from hovernet_cyclic.core.settings import BackEndSettings
from hovernet_cyclic.training.optimiser import NotFiniteError, OneCycleAdamW


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20, 30])
def test_any_number_of_steps_moves_the_weights(steps):
    network = torch.nn.Linear(2, 1)
    optimiser = OneCycleAdamW(network, BackEndSettings(), steps)
    before = network.weight.detach().clone()
    for _ in range(steps):
        optimiser.step({"loss": network(torch.ones(1, 2)).square().mean()})
    assert not torch.equal(network.weight, before) and torch.isfinite(network.weight).all()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda weight: weight.sum() * float("nan"), "the loss 'loss' is nan"),
        (lambda weight: weight.sum() / 0, "the loss 'loss' is .*inf"),
        (lambda weight: (weight - weight).sqrt().sum(), "the gradient is not finite"),  # 0, and rises without bound
    ],
)
def test_what_is_not_finite_is_found_before_it_reaches_a_weight(loss, words):
    network = torch.nn.Linear(2, 1)
    optimiser = OneCycleAdamW(network, BackEndSettings(), 4)
    before = network.weight.detach().clone()
    with pytest.raises(NotFiniteError, match=words):
        optimiser.step({"loss": loss(network.weight)})
    assert torch.equal(network.weight, before)


def test_it_goes_on_from_its_state_bit_for_bit():
    torch.manual_seed(0)
    whole = torch.nn.Linear(8, 8)
    half = copy.deepcopy(whole)
    inputs = torch.randn(6, 4, 8)

    def steps(network, optimiser, rows):
        for row in rows:
            optimiser.step({"loss": network(row).square().mean()})
        return optimiser

    steps(whole, OneCycleAdamW(whole, BackEndSettings(), 6), inputs)
    first = steps(half, OneCycleAdamW(half, BackEndSettings(), 6), inputs[:3])
    again = copy.deepcopy(half)
    second = OneCycleAdamW(again, BackEndSettings(), 6)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(again, second, inputs[3:])
    assert torch.equal(again.weight, whole.weight) and torch.equal(again.bias, whole.bias)


def trained(half, values):
    """The weights after a step down each of `values` times the output."""
    torch.manual_seed(0)
    network = torch.nn.Linear(2, 1)
    optimiser = OneCycleAdamW(network, BackEndSettings(), 8, half)
    for value in values:
        found = optimiser.step({"loss": value * network(torch.ones(1, 2)).square().mean()})
        assert set(found) == {"loss"}
    return network.weight.detach()


def test_a_scaled_loss_takes_the_same_steps_and_leaves_out_those_that_overflow():
    torch.testing.assert_close(trained(True, [1.0, 2.0]), trained(False, [1.0, 2.0]))
    torch.testing.assert_close(trained(True, [1e36]), trained(True, []))

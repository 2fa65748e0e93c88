"""The schedule works for every number of steps that a recipe can ask for."""

import pytest
import torch

from hovernet_cyclic.core.settings import BackEndSettings
from hovernet_cyclic.training.optimiser import OneCycleAdamW


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 20, 30])
def test_any_number_of_steps_moves_the_weights(steps):
    network = torch.nn.Linear(2, 1)
    optimiser = OneCycleAdamW(network, BackEndSettings(), steps)
    before = network.weight.detach().clone()
    for _ in range(steps):
        optimiser.step({"loss": network(torch.ones(1, 2)).square().mean()})
    assert not torch.equal(network.weight, before) and torch.isfinite(network.weight).all()


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

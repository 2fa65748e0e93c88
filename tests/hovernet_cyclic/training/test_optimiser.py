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

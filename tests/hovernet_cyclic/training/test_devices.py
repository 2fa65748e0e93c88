"""What a run takes of a machine."""

import dataclasses

import pytest
import torch

import config
from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.training.devices import check_share, for_training, with_workers
from models.devices import Device
from models.ranks import Ranks

CPU, GPU = (Device(torch.device(name), torch.float32) for name in ("cpu", "cuda"))


def test_an_old_gpu_trains_in_float16_and_nothing_else_changes():
    assert for_training(GPU).dtype == torch.float16 and for_training(CPU) == CPU
    bfloat16 = dataclasses.replace(GPU, dtype=torch.bfloat16)
    assert for_training(bfloat16) == bfloat16


@pytest.mark.parametrize(
    ("device", "cores", "here", "asked", "workers"),
    [(CPU, 64, 1, None, 0), (GPU, 64, 8, None, 7), (GPU, 64, 1, None, 8), (GPU, 4, 4, None, 0), (CPU, 2, 1, 3, 3)],
)
def test_workers_are_those_asked_for_or_the_cores_that_are_left(monkeypatch, device, cores, here, asked, workers):
    monkeypatch.setattr("models.ranks.cpu_count", lambda: cores)
    ranks = with_workers(Ranks(1, 8, here), device, asked)
    assert ranks == Ranks(1, 8, here, workers)


def test_no_process_may_be_left_without_a_row():
    recipe = config.folder()  # batches of 32 and 4
    check_share(recipe, Ranks(0, 4))
    with pytest.raises(RecipeError, match=r"5 processes train together, but back_end\.batch_size is 4: .* at most 4"):
        check_share(recipe, Ranks(0, 5))
    small = dataclasses.replace(recipe, front_end=dataclasses.replace(recipe.front_end, batch_size=2))
    with pytest.raises(RecipeError, match=r"front_end\.batch_size is 2"):
        check_share(small, Ranks(0, 3))
    check_share(dataclasses.replace(small, supervision="masks"), Ranks(0, 3))  # there is no front end

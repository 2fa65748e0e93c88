"""What a run takes of a machine, in words too, and its seeds. How a device is chosen is models/devices.py's."""

from __future__ import annotations

import dataclasses
import platform
import random

import numpy as np
import torch

from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.settings import TrainRecipe
from models.devices import Device
from models.ranks import Ranks

MOST_WORKERS = 8  # of one process, unless more are asked for


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch: what a recipe draws outside its own seeded generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - imgaug and scikit-image read the global state
    torch.manual_seed(seed)


def for_training(device: Device) -> Device:
    """The device with float16 in place of float32 where it is a GPU that knows no bfloat16; the loss is then scaled."""
    old_gpu = device.torch_device.type == "cuda" and device.dtype == torch.float32
    return dataclasses.replace(device, dtype=torch.float16) if old_gpu else device


def with_workers(ranks: Ranks, device: Device, asked: int | None) -> Ranks:
    """`ranks` with processes that prepare batches: as many as are asked for.

    None: one less than there are cores for this process where a GPU waits for them; none beside a CPU, whose cores the
    network itself needs.
    """
    usual = min(MOST_WORKERS, ranks.cores - 1) if device.torch_device.type == "cuda" else 0
    return dataclasses.replace(ranks, workers=usual if asked is None else asked)


def check_share(recipe: TrainRecipe, ranks: Ranks) -> None:
    """Raises RecipeError where the recipe's batches have no row for some of `ranks`."""
    sizes = {"back_end.batch_size": recipe.back_end.batch_size}
    if recipe.supervision != "masks":
        sizes["front_end.batch_size"] = recipe.front_end.batch_size
    name, least = min(sizes.items(), key=lambda item: item[1])
    if least < ranks.count:
        raise RecipeError(
            f"{ranks.count} processes train together, but {name} is {least}: a batch is dealt out row by row, so use "
            f"at most {least} devices, or give a larger batch."
        )


def describe_device(device: Device) -> str:
    """Such as 'NVIDIA H100 (cuda:0), bfloat16' or 'x86_64 CPU with 2 threads, float32'."""
    precision = str(device.dtype).removeprefix("torch.")
    if device.torch_device.type == "cuda":
        return f"{torch.cuda.get_device_name(device.torch_device)} ({device.torch_device}), {precision}"
    return f"{platform.machine()} CPU with {torch.get_num_threads()} threads, {precision}"

"""Seeds of a run, and its device in words. How a device is chosen is models/devices.py's."""

from __future__ import annotations

import platform
import random

import numpy as np
import torch

from models.devices import Device


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch: what a recipe draws outside its own seeded generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - imgaug and scikit-image read the global state
    torch.manual_seed(seed)


def describe_device(device: Device) -> str:
    """Such as 'NVIDIA H100 (cuda:0), bfloat16' or 'x86_64 CPU with 2 threads, float32'."""
    precision = str(device.dtype).removeprefix("torch.")
    if device.torch_device.type == "cuda":
        return f"{torch.cuda.get_device_name(device.torch_device)} ({device.torch_device}), {precision}"
    return f"{platform.machine()} CPU with {torch.get_num_threads()} threads, {precision}"

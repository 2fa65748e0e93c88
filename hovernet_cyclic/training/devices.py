"""Which device a run uses, at which precision, and how arrays reach it."""

from __future__ import annotations

import random
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.types import Float32Array

NetworkT = TypeVar("NetworkT", bound=torch.nn.Module)


@dataclass(frozen=True)
class Device:
    """A torch device and the precision of the network's arithmetic on it (float32 or bfloat16; sums stay float32)."""

    torch_device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[Any]:
        """Run the network in `dtype` inside this context."""
        return torch.autocast(self.torch_device.type, self.dtype, enabled=self.dtype != torch.float32)

    def images(self, images: Float32Array) -> torch.Tensor:
        """float32 (B, h, w, 3) -> float32 (B, 3, h, w) on the device, channels last in memory."""
        tensor = torch.from_numpy(images).to(self.torch_device).permute(0, 3, 1, 2)
        return tensor.contiguous(memory_format=torch.channels_last)

    def place(self, network: NetworkT) -> NetworkT:
        """The network on the device, channels last in memory."""
        placed: NetworkT = network.to(self.torch_device)
        placed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return placed

    def tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """The array on the device, dtype kept."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.torch_device)


def choose_device(gpu: str | None) -> Device:
    """The device of `--gpu`: None (the first GPU if there is one, else the CPU), 'cpu', or a comma list of ids.

    Raises RecipeError for anything else.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu is None:
        gpu = "0" if count else "cpu"
    if gpu == "cpu":
        return Device(torch.device("cpu"), torch.bfloat16 if _cpu_has_bfloat16() else torch.float32)
    ids = gpu.split(",")
    if not all(name.isdecimal() for name in ids):
        raise RecipeError(f"--gpu={gpu}: give numbers such as 0 or 0,1, or cpu.")
    if max(map(int, ids)) >= count:
        raise RecipeError(f"--gpu={gpu}: this machine has {count} GPUs: use ids below {count}, or --gpu=cpu.")
    if len(ids) > 1:
        print(f"--gpu={gpu}: this version trains on one device, and takes {ids[0]}.")
    precision = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return Device(torch.device("cuda", int(ids[0])), precision)


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself: without, autocast is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch: what a recipe draws outside its own seeded generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - imgaug and scikit-image read the global state
    torch.manual_seed(seed)

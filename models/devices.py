"""Which device a network runs on, at which precision, and how arrays reach it."""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.types import Float32Array, UInt8Array

NetworkT = TypeVar("NetworkT", bound=torch.nn.Module)

PRECISIONS = ("auto", "fp32", "bf16")
CONTAINER = Path("/sys/fs/cgroup")  # where Linux tells a container's limits
CONTAINER_LIMIT = ("memory.max", "memory.current")


@dataclass(frozen=True)
class Device:
    """A torch device and the precision of the network's arithmetic on it (float32 or bfloat16; sums stay float32)."""

    torch_device: torch.device
    dtype: torch.dtype

    def autocast(self) -> AbstractContextManager[Any]:
        """Run the network in `dtype` inside this context."""
        return torch.autocast(self.torch_device.type, self.dtype, enabled=self.dtype != torch.float32)

    def images(self, images: Float32Array | UInt8Array) -> torch.Tensor:
        """uint8 or float32 (B, h, w, 3) -> float32 (B, 3, h, w) on the device, channels last in memory."""
        tensor = torch.from_numpy(images).to(self.torch_device).permute(0, 3, 1, 2)
        return tensor.float().contiguous(memory_format=torch.channels_last)

    def place(self, network: NetworkT) -> NetworkT:
        """The network on the device, channels last in memory."""
        placed: NetworkT = network.to(self.torch_device)
        placed.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return placed

    def tensor(self, array: npt.NDArray[Any]) -> torch.Tensor:
        """The array on the device, dtype kept."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.torch_device)


def choose_device(gpu: str | None, precision: str = "auto") -> Device:
    """The first of `choose_devices`, and a line on stdout where others are left idle."""
    first, *others = choose_devices(gpu, precision)
    if others:
        print(f"--gpu={gpu}: this version uses one device, and takes {first.torch_device.index}.")
    return first


def choose_devices(gpu: str | None, precision: str = "auto") -> list[Device]:
    """The devices of `--gpu` at the precision of `--precision`, each once.

    gpu: None (the first GPU if there is one, else the CPU), 'cpu', or a comma list of ids. precision: 'fp32', 'bf16',
    or 'auto': bf16 where the device multiplies it itself. Raises RecipeError for others.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpu is None:
        gpu = "0" if count else "cpu"
    if gpu == "cpu":
        return [Device(torch.device("cpu"), _dtype(precision, _cpu_has_bfloat16()))]
    ids = gpu.split(",")
    # isdecimal alone would let numerals of other scripts pass.
    if not all(name.isascii() and name.isdecimal() for name in ids):
        raise RecipeError(f"--gpu={gpu}: give numbers such as 0 or 0,1, or cpu.")
    if count == 0:
        raise RecipeError(f"--gpu={gpu}: this machine has no GPU that torch can use: give --gpu=cpu.")
    if max(map(int, ids)) >= count:
        raise RecipeError(f"--gpu={gpu}: this machine has {count} GPUs: use ids below {count}, or --gpu=cpu.")
    numbers = dict.fromkeys(map(int, ids))
    dtype = _dtype(precision, torch.cuda.is_bf16_supported(including_emulation=False))
    return [Device(torch.device("cuda", number), dtype) for number in numbers]


def _dtype(precision: str, bfloat16_is_fast: bool) -> torch.dtype:
    if precision not in PRECISIONS:
        raise RecipeError(f"--precision={precision}: use one of {', '.join(PRECISIONS)}.")
    wanted = precision == "bf16" or (precision == "auto" and bfloat16_is_fast)
    return torch.bfloat16 if wanted else torch.float32


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself: without, autocast is slower than float32."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on a device, or None where that cannot be told."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return min(free, _left_to_the_container(free))


def _left_to_the_container(free: int) -> int:
    """What a container's own limit leaves, where it has one; reclaimable file pages count as free."""
    try:
        limit, used = (
            (CONTAINER / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current")
        )
        cached = next(
            int(line.split()[1])
            for line in (CONTAINER / "memory.stat").read_text().splitlines()
            if line.startswith("file ")
        )
    except (OSError, StopIteration):
        return free
    return free if limit == "max" else max(0, int(limit) - int(used) + cached)


def keep_freed_memory() -> bool:
    """Let this process keep the memory it frees and use it again; True where the system's allocator can be told so.

    Large tensors are otherwise given back to the system and fetched anew, page by page, at every layer: on a CPU that
    is up to half of a forward pass over a large patch. To be called before threads are started.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt  # glibc's
    except (OSError, AttributeError, TypeError):
        return False
    arenas, mapped_from, trimmed_from = -8, -3, -1  # M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    settings = ((arenas, 1), (mapped_from, 2**30), (trimmed_from, 2**31 - 1))
    return all([mallopt(name, value) == 1 for name, value in settings])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory did not suffice, on a GPU or on the CPU."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)

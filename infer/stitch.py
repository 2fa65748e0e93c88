"""Patches to tile, on the network's device: each output pixel is written once, where the lattice says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hovernet_cyclic.core.geometry import PatchLattice
from hovernet_cyclic.core.types import RawMaps


class TileStitcher:
    """Raw maps of one tile, filled patch by patch in any order. lattice: of the tile. device: where its maps lie."""

    def __init__(self, lattice: PatchLattice, device: torch.device | str = "cpu") -> None:
        self._lattice, self._device = lattice, torch.device(device)
        self._maps: list[Tensor | None] = []
        self._missing = set(range(len(lattice.corners)))

    def place(
        self,
        index: int,
        np_prob: Tensor,
        hv_map: Tensor,
        type_map: Tensor | None = None,
        type_probs: Tensor | None = None,
    ) -> None:
        """Write the answer of patch `index`, less what reaches over the tile's edge.

        np_prob: float32 (h, w). hv_map: float32 (h, w, 2). type_map: uint8 (h, w), type_probs: float16 (h, w, T), or
        None, for all patches alike.
        """
        answer = (np_prob, hv_map, type_map, type_probs)
        if not self._maps:
            self._maps = [None if part is None else self._canvas(part) for part in answer]
        box = self._lattice.output_box(index)
        for canvas, part in zip(self._maps, answer, strict=True):
            if canvas is not None and part is not None:
                canvas[box.top : box.bottom, box.left : box.right] = part[: box.height, : box.width]
        self._missing.discard(index)

    def _canvas(self, part: Tensor) -> Tensor:
        return torch.empty((*self._lattice.tile_shape, *part.shape[2:]), dtype=part.dtype, device=self._device)

    def fetch(self) -> Callable[[], RawMaps]:
        """Start to bring the maps of the whole tile to the CPU; what is returned waits for them and answers with them.

        Raises ValueError while a patch is missing.
        """
        if self._missing:
            raise ValueError(f"{len(self._missing)} of {len(self._lattice.corners)} patches are missing")
        if self._device.type != "cuda":
            here = [None if part is None else part.cpu() for part in self._maps]
            return lambda: _as_arrays(here)
        arrived = torch.cuda.Event()
        pinned = [None if part is None else _to_pinned(part) for part in self._maps]
        arrived.record(torch.cuda.current_stream(self._device))

        def wait() -> RawMaps:
            arrived.synchronize()
            return _as_arrays(pinned)

        return wait

    def raw_maps(self) -> RawMaps:
        """The maps of the whole tile. Raises ValueError while a patch is missing."""
        return self.fetch()()


def _to_pinned(part: Tensor) -> Tensor:
    """A copy in memory that the GPU writes to by itself while the CPU goes on."""
    return torch.empty(part.shape, dtype=part.dtype, pin_memory=True).copy_(part, non_blocking=True)


def _as_arrays(parts: list[Tensor | None]) -> RawMaps:
    np_prob, hv_map, type_map, type_probs = (None if part is None else part.numpy() for part in parts)
    assert np_prob is not None and hv_map is not None, "both branches answer for every patch"
    return RawMaps(np_prob, hv_map, type_map, type_probs)

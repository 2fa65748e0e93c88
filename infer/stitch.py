"""Patches to tile: each output pixel is written once, where the lattice says."""

from __future__ import annotations

import numpy as np

from hovernet_cyclic.core.geometry import PatchLattice
from hovernet_cyclic.core.types import Float16Array, Float32Array, RawMaps, UInt8Array


class TileStitcher:
    """Raw maps of one tile, filled patch by patch in any order."""

    def __init__(self, lattice: PatchLattice, typed: bool) -> None:
        """lattice: of the tile. typed: whether the network tells types."""
        self._lattice = lattice
        self._np_prob = np.zeros(lattice.tile_shape, np.float32)
        self._hv_map = np.zeros((*lattice.tile_shape, 2), np.float32)
        self._type_map = np.zeros(lattice.tile_shape, np.uint8) if typed else None
        self._type_probs: Float16Array | None = None
        self._missing = set(range(len(lattice.corners)))

    def place(
        self,
        index: int,
        np_prob: Float32Array,
        hv_map: Float32Array,
        type_map: UInt8Array | None,
        type_probs: Float16Array | None = None,
    ) -> None:
        """Write the answer of patch `index`, less what reaches over the tile's edge.

        np_prob: float32 (h, w). hv_map: float32 (h, w, 2). type_map: uint8 (h, w), or None where not typed.
        type_probs: float16 (h, w, T), or None where none are wanted, for all patches alike.
        """
        box = self._lattice.output_box(index)
        inside = (slice(box.top, box.bottom), slice(box.left, box.right))
        part = (slice(0, box.height), slice(0, box.width))
        self._np_prob[inside] = np_prob[part]
        self._hv_map[inside] = hv_map[part]
        if self._type_map is not None and type_map is not None:
            self._type_map[inside] = type_map[part]
        if type_probs is not None:
            if self._type_probs is None:
                self._type_probs = np.zeros((*self._lattice.tile_shape, type_probs.shape[-1]), np.float16)
            self._type_probs[inside] = type_probs[part]
        self._missing.discard(index)

    def raw_maps(self) -> RawMaps:
        """The maps of the whole tile. Raises ValueError while a patch is missing."""
        if self._missing:
            raise ValueError(f"{len(self._missing)} of {len(self._lattice.corners)} patches are missing")
        return RawMaps(self._np_prob, self._hv_map, self._type_map, self._type_probs)

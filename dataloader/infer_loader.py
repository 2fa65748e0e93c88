"""The patches of one tile, in batches, for a network that answers for less than it reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from hovernet_cyclic.core.geometry import PatchLattice, Shape, patch_lattice
from hovernet_cyclic.core.types import UInt8Array


class PatchBatch(NamedTuple):
    """indices: which patches of the lattice. images: uint8 (B, h, w, 3) RGB, in the same order."""

    indices: range
    images: UInt8Array


class TilePatches:
    """A tile behind a lattice of patches, with its surroundings mirrored so that every pixel is in some output.

    image: uint8 (H, W, 3) RGB, H and W >= 1. Shapes are (h, w) px. lattice: where the patches lie. Raises DatasetError
    for an image without pixels.
    """

    def __init__(self, image: UInt8Array, patch_input_shape: Shape, patch_output_shape: Shape) -> None:
        self.lattice: PatchLattice = patch_lattice(
            (image.shape[0], image.shape[1]), patch_input_shape, patch_output_shape
        )
        self._padded = mirror(image, self.lattice.padding)

    def batches(self, batch_size: int) -> Iterator[PatchBatch]:
        """All patches in the lattice's order, batch_size at a time, the last batch maybe smaller."""
        count = len(self.lattice.corners)
        for begin in range(0, count, batch_size):
            indices = range(begin, min(begin + batch_size, count))
            boxes = [self.lattice.input_box(index) for index in indices]
            yield PatchBatch(indices, np.stack([self._padded[b.top : b.bottom, b.left : b.right] for b in boxes]))


def mirror(image: UInt8Array, padding: tuple[int, int, int, int]) -> UInt8Array:
    """The image with (top, bottom, left, right) px added by reflection at its border pixels, which are not repeated.

    image: uint8 (H, W, C). Where more is asked than the image holds it is reflected again, back and forth; an image
    of one pixel is repeated.
    """
    top, bottom, left, right = padding
    return np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="reflect")

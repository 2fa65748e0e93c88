"""The patches of one window of an image or slide, for a network that answers for less than it reads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.geometry import PatchLattice, Shape, patch_lattice
from hovernet_cyclic.core.types import Box, Pixels, UInt8Array


class TilePatches:
    """What is wanted of an image, behind a lattice of patches.

    pixels: see Pixels. Shapes are (h, w) px. lattice: where the patches lie in `pixels.wanted`. image: uint8 (H, W, 3),
    that window with its surroundings: true pixels where `pixels.image` has them, else mirrored ones. These are mirrored
    at the border of the whole, as long as `pixels.box` reaches to it. Raises DatasetError for an image without pixels.
    """

    def __init__(self, pixels: Pixels, patch_input_shape: Shape, patch_output_shape: Shape) -> None:
        wanted, box = pixels.wanted, pixels.box
        if min(pixels.image.shape[:2]) < 1:
            height, width = pixels.image.shape[:2]
            raise DatasetError(f"A tile of {height} x {width} px holds no pixel: remove this image.")
        self.lattice: PatchLattice = patch_lattice((wanted.height, wanted.width), patch_input_shape, patch_output_shape)
        top, bottom, left, right = self.lattice.padding
        needed = Box(wanted.top - top, wanted.left - left, wanted.bottom + bottom, wanted.right + right)
        missing = (box.top - needed.top, needed.bottom - box.bottom, box.left - needed.left, needed.right - box.right)
        padding = tuple(max(0, px) for px in missing)
        skipped = slice(max(0, -missing[0]), None), slice(max(0, -missing[2]), None)
        padded = mirror(pixels.image, (padding[0], padding[1], padding[2], padding[3]))[skipped]
        height, width = self.lattice.padded_shape
        self.image = np.ascontiguousarray(padded[:height, :width])

    def batches(self, batch_size: int) -> Iterator[range]:
        """The patches' indices in the lattice's order, batch_size at a time, the last batch maybe smaller."""
        count = len(self.lattice.corners)
        return (range(begin, min(begin + batch_size, count)) for begin in range(0, count, batch_size))


def mirror(image: UInt8Array, padding: tuple[int, int, int, int]) -> UInt8Array:
    """The image with (top, bottom, left, right) px added by reflection at its border pixels, which are not repeated.

    image: uint8 (H, W, C). Where more is asked than the image holds it is reflected again, back and forth; an image
    of one pixel is repeated.
    """
    top, bottom, left, right = padding
    return np.pad(image, ((top, bottom), (left, right), (0, 0)), mode="reflect")

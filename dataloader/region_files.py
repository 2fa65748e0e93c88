"""Small regions cut from slides and saved as Aperio SVS, as MoNuSAC publishes them: read whole, at full resolution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import UInt8Array

LARGEST_REGION = 10_000  # px a side: more is a slide, not a region


def read_region(path: Path) -> UInt8Array:
    """The whole region as uint8 (H, W, 3) RGB; what is transparent becomes white.

    Raises DatasetError for a file that OpenSlide cannot read, or that is too large to be a region.
    """
    with _opened(path) as slide:
        width, height = _dimensions(path, slide)
        try:
            pixels = np.asarray(slide.read_region((0, 0), 0, (width, height)))
        except Exception as error:  # OpenSlide reports a damaged tile in its own kind of error
            raise DatasetError(f"{path} is damaged ({error}): copy or unpack it again.") from error
    image = np.where(pixels[..., 3:] == 0, 255, pixels[..., :3])
    return np.ascontiguousarray(image, np.uint8)


def region_shape(path: Path) -> tuple[int, int]:
    """(height, width) px, from the file's header. Raises DatasetError as `read_region` does."""
    with _opened(path) as slide:
        width, height = _dimensions(path, slide)
    return height, width


def region_mpp(path: Path) -> float | None:
    """Micrometres per pixel as the file states them, None where it does not. Raises DatasetError."""
    with _opened(path) as slide:
        stated = slide.properties.get("openslide.mpp-x")
    return None if stated is None else float(stated)


def _opened(path: Path) -> Any:
    import openslide  # a tenth of a second to import, which only this format needs

    try:
        return openslide.OpenSlide(str(path))
    except (openslide.OpenSlideError, OSError) as error:
        raise DatasetError(
            f"{path} is damaged or no slide that OpenSlide reads ({error}): copy or unpack it again."
        ) from error


def _dimensions(path: Path, slide: Any) -> tuple[int, int]:
    width, height = slide.dimensions
    if max(width, height) > LARGEST_REGION:
        raise DatasetError(
            f"{path} has {height} x {width} px, which is a slide and no region of one: cut regions of at most "
            f"{LARGEST_REGION} px out of it."
        )
    return width, height

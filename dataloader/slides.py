"""Slides at the network's scale: which back-end opens a file, what its mpp is, and its pixels at another mpp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dataloader.images import IMAGE_SUFFIXES
from dataloader.readers.faults import is_remote
from dataloader.resample import axis_taps, resample
from hovernet_cyclic.core.errors import SlideError
from hovernet_cyclic.core.types import Box, SlideReader, UInt8Array

SLIDE_SUFFIXES = (
    *(".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".dcm", ".czi", ".zarr"),
    *IMAGE_SUFFIXES,
)
# A level this close to the network's mpp is taken as it is: scanners of one kind differ by as much.
SAME_SCALE = 0.02
UM_OF_MAGNIFICATION_1 = 10.0  # um/px at a magnification of 1, as scanners have it: 0.25 at 40x


def open_slide(path: str | Path) -> SlideReader:
    """The slide behind its back-end. Raises SlideError for a file that is missing, damaged or of no known format.

    OME-Zarr by its name, OME-TIFF by its content, then what OpenSlide knows, then other TIFFs and plain images.
    Addresses (s3://, gs://, https://) work for OME-Zarr and TIFF: the others need a file of their own.
    """
    from dataloader.readers.ome_zarr import OmeZarrReader, is_ome_zarr

    name = str(path)
    if is_ome_zarr(name):
        return OmeZarrReader(name)
    is_tiff = _is_named_tiff(name)
    if is_remote(name):
        return _open_remote(name, is_tiff)
    if not Path(name).exists():
        raise SlideError(f"{name} is not there: check the name.")
    return _open_local(name, is_tiff)


def _is_named_tiff(name: str) -> bool:
    return name.lower().endswith((".tif", ".tiff", ".ome.btf", ".tf8"))


def _open_remote(name: str, is_tiff: bool) -> SlideReader:
    from dataloader.readers.tiff import TiffReader

    if not is_tiff:
        raise SlideError(f"{name}: only TIFF and OME-Zarr are read from afar: copy the slide here.")
    return TiffReader(name)


def _open_local(name: str, is_tiff: bool) -> SlideReader:
    from dataloader.readers.image import ImageReader
    from dataloader.readers.openslide import OpenSlideReader, is_openslide
    from dataloader.readers.tiff import TiffReader, is_ome_tiff

    if is_tiff and is_ome_tiff(name):
        return TiffReader(name)
    if is_openslide(name):
        return OpenSlideReader(name)
    if is_tiff:
        return TiffReader(name)
    if name.lower().endswith(IMAGE_SUFFIXES):
        return ImageReader(name)
    raise SlideError(f"{name} is damaged or no slide that can be read: give SVS, NDPI, MRXS, OME-TIFF, OME-Zarr, PNG.")


class SlideScale(NamedTuple):
    """um/px of level 0 (down, across), and where it comes from: 'file', 'given' or 'magnification'."""

    mpp: tuple[float, float]
    source: str


def slide_scale(reader: SlideReader, given: float | None = None) -> SlideScale:
    """The mpp of level 0: as given, as in the file, or guessed from the objective. Raises SlideError for none."""
    if given is not None:
        return SlideScale((given, given), "given")
    if reader.mpp is not None:
        return SlideScale(reader.mpp, "file")
    if reader.magnification:
        guess = UM_OF_MAGNIFICATION_1 / reader.magnification
        return SlideScale((guess, guess), "magnification")
    fault = "does not say how large its pixels are:"
    if _lost_its_ome(reader.path):
        fault = "is named an OME-TIFF but holds no OME-XML: its end may be missing: copy it again, or"
    raise SlideError(f"{reader.path} {fault} add --mpp=<um/px of its finest level>, as --mpp=0.25.")


def _lost_its_ome(path: str) -> bool:
    """Writers put OME-XML at the end of the file, which a copy that was cut short lacks."""
    from dataloader.readers.tiff import is_ome_tiff

    return _is_named_tiff(path) and Path(path.lower()).stem.endswith(".ome") and not is_ome_tiff(path)


@dataclass(frozen=True)
class SlideView:
    """A slide at another mpp, read from its nearest finer level.

    level: read from it. factors: px of the level per px of the view (down, across), 1 where it is taken as it is.
    shape: (H, W) px of the view. mpp: um/px of the view (down, across).
    """

    reader: SlideReader
    level: int
    factors: tuple[float, float]
    shape: tuple[int, int]
    mpp: tuple[float, float]

    def read(self, box: Box) -> UInt8Array:
        """uint8 (H, W, 3) RGB of a box in px of the view, inside it; the same pixels whatever box they are part of.

        Raises UnreadableRegionError or SlideError.
        """
        if self.factors == (1.0, 1.0):
            return self.reader.read(self.level, box)
        height, width = self.reader.level_shapes[self.level]
        rows = axis_taps(box.top, box.bottom, self.factors[0], height)
        columns = axis_taps(box.left, box.right, self.factors[1], width)
        source = Box(
            int(rows.indices.min()),
            int(columns.indices.min()),
            int(rows.indices.max()) + 1,
            int(columns.indices.max()) + 1,
        )
        return resample(self.reader.read(self.level, source), (source.top, source.left), rows, columns)

    @property
    def scale_to_level0(self) -> tuple[float, float]:
        """px of level 0 per px of the view (across, down): x first, as points are."""
        level, level0 = self.reader.level_shapes[self.level], self.reader.level_shapes[0]
        return self.factors[1] * level0[1] / level[1], self.factors[0] * level0[0] / level[0]

    def to_level0(self, points: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Points (..., 2) x, y in px of the view, pixel centres at integers -> the same in px of level 0."""
        scale = np.array(self.scale_to_level0)
        return np.asarray((np.asarray(points, np.float64) + 0.5) * scale - 0.5)


def view_at(reader: SlideReader, scale: SlideScale, mpp: float) -> SlideView:
    """The slide at `mpp` um/px."""
    level_mpps = [_level_mpp(reader, level, scale.mpp) for level in range(len(reader.level_shapes))]
    finer = [level for level, size in enumerate(level_mpps) if max(size) <= mpp * (1 + SAME_SCALE)]
    level = max(finer, key=lambda one: level_mpps[one]) if finer else 0
    height, width = reader.level_shapes[level]
    factors = (mpp / level_mpps[level][0], mpp / level_mpps[level][1])
    if all(abs(factor - 1) <= SAME_SCALE for factor in factors):
        return SlideView(reader, level, (1.0, 1.0), (height, width), level_mpps[level])
    shape = (max(1, int(height / factors[0] + 0.5)), max(1, int(width / factors[1] + 0.5)))
    return SlideView(reader, level, factors, shape, (mpp, mpp))


def _level_mpp(reader: SlideReader, level: int, mpp: tuple[float, float]) -> tuple[float, float]:
    (height0, width0), (height, width) = reader.level_shapes[0], reader.level_shapes[level]
    return mpp[0] * height0 / height, mpp[1] * width0 / width


def whole(view: SlideView) -> Box:
    """The box of the whole slide, px of the view."""
    return Box(0, 0, *view.shape)

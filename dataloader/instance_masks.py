"""Label maps kept as one black-and-white image per nucleus, and as one such image for all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from joblib import Parallel, cpu_count, delayed

from dataloader.converted import content_key, converted
from dataloader.image_headers import torn_part
from dataloader.images import list_images, read_bytes
from dataloader.instances import Piece, paint, piece_of
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import Annotation, BoolArray

MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # a JPEG has no clean black


def read_instance_masks(folder: Path, shape: tuple[int, int], cache_dir: Path) -> Annotation:
    """The masks of a folder, one nucleus a file, as one label map: instance k is the k-th file by name (2 before 10).

    A pixel belongs to the nucleus where any colour is not 0. Overlaps are settled as `paint` says. The files are
    decoded in parallel, and the map is kept in `cache_dir` (see `converted`). shape: (H, W) of the image. Raises
    DatasetError for a folder without masks, a file that cannot be read, and one of another size than the image.
    """
    paths = sorted(_mask_files(folder), key=lambda path: _natural(path.name))
    contents = [(path.name, read_bytes(path)) for path in paths]

    def convert() -> Annotation:
        jobs = (delayed(_tried)(path, data, shape, folder) for path, (_, data) in zip(paths, contents, strict=True))
        tried = Parallel(cpu_count(), prefer="threads")(jobs)  # decoding frees the interpreter
        pieces: list[Piece | None] = []
        for one in tried:  # of several bad files the first by name is told, whichever thread came first
            if isinstance(one, DatasetError):
                raise one
            pieces.append(one)
        return paint(pieces, shape)

    return converted(cache_dir, content_key(contents, shape), convert)


def read_black_and_white(path: Path) -> Annotation:
    """A mask of all nuclei at once: each 8-connected piece is taken for a nucleus, so that touching ones are one.

    inst_map: int32 (H, W). Raises DatasetError for a file that cannot be read.
    """
    count, inst_map = cv2.connectedComponents(_foreground(path, read_bytes(path)).astype(np.uint8), connectivity=8)
    notes = ("a black-and-white mask: nuclei that touch are taken for one",) if count > 1 else ()
    return Annotation(path.stem, inst_map.astype(np.int32), None, notes)


def is_black_and_white(values: npt.NDArray[Any]) -> bool:
    """Whether an image holds no more than two values in each of its channels, black among them: no numbers of nuclei.

    values: (H, W) or (H, W, C).
    """
    colours = values[..., :3] if values.ndim == 3 else values[..., None]
    flat = colours.reshape(-1, colours.shape[-1])
    return all(len(np.unique(channel[channel > 0])) <= 1 for channel in flat.T)


def _mask_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DatasetError(f"The folder {folder} does not exist: unpack the whole archive, or leave this image out.")
    return [path for path in list_images(folder) if path.suffix.lower() in MASK_SUFFIXES]


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 'mask_2' before 'mask_10'."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]


def _tried(path: Path, data: bytes, shape: tuple[int, int], folder: Path) -> Piece | DatasetError | None:
    try:
        return _piece(path, data, shape, folder)
    except DatasetError as error:
        return error


def _piece(path: Path, data: bytes, shape: tuple[int, int], folder: Path) -> Piece | None:
    mask = _foreground(path, data)
    if mask.shape != shape:
        raise DatasetError(
            f"{path} has {mask.shape[0]} x {mask.shape[1]} px but its image has {shape[0]} x {shape[1]} px: "
            f"give {folder.name} of this image."
        )
    return piece_of(mask)


def _foreground(path: Path, data: bytes) -> BoolArray:
    """bool (H, W): where any channel but alpha is not 0."""
    torn = torn_part(data)
    if torn:
        raise DatasetError(f"{path} is damaged ({torn}): copy or unpack it again.")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise DatasetError(f"{path} is no image: copy or unpack it again.")
    colours = image.reshape(*image.shape[:2], -1)[..., :3]
    return np.asarray(np.any(colours > 0, axis=2), np.bool_)

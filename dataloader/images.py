"""Image files: strict reading of 8-bit RGB, atomic writing, listing of folders."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from dataloader.image_headers import ImageHeader, parse_header, torn_part
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import UInt8Array

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_HEADER_BYTES = 1 << 16
_MAP_IF_EQUAL_NEIGHBOURS = 0.9  # share of equal neighbours above which one channel is taken for a label map


def read_rgb(path: str | Path) -> UInt8Array:
    """The pixels of an 8-bit RGB PNG, JPEG, TIFF or BMP file, as stored (an EXIF orientation is not applied).

    Returns uint8 (H, W, 3), RGB, C-contiguous. An alpha channel that is opaque everywhere is dropped. Raises
    DatasetError (one sentence: file and cure) for a file that is missing, empty, torn or unknown, and for label maps,
    grey, palette, CMYK, 16-bit and transparent images.
    """
    data = read_bytes(path)
    header = parse_header(data)
    if header is not None:
        _check_header(path, header)
    torn = torn_part(data)
    if torn:
        raise DatasetError(f"{path} is damaged ({torn}): copy or export it again.")
    return _as_rgb(path, _decode(path, data))


def image_shape(path: str | Path) -> tuple[int, int]:
    """(height, width) in pixels, from the header where the format allows, else by decoding. Raises DatasetError."""
    try:
        with Path(path).open("rb") as stream:
            header = parse_header(stream.read(_HEADER_BYTES))
    except OSError as error:
        raise DatasetError(_unreadable(path, error)) from error
    if header is not None:
        return header.height, header.width
    height, width, _ = read_rgb(path).shape
    return height, width


def write_png(path: str | Path, image: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> None:
    """Writes a PNG under a temporary name and renames it, so that no half-written file is ever seen.

    image: uint8 (H, W, 3) RGB, or a map uint8 or uint16 (H, W). Folders are made as needed. Raises ValueError for other
    arrays, and OSError where the disk refuses.
    """
    is_rgb = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    if not is_rgb and not (image.ndim == 2 and image.dtype in (np.uint8, np.uint16)):
        raise ValueError(f"cannot write {image.dtype} {image.shape} as PNG")
    encoded = cv2.imencode(".png", image[..., ::-1] if is_rgb else image)[1]
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(encoded.tobytes())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def list_images(folder: str | Path) -> list[Path]:
    """Image files directly in a folder (see IMAGE_SUFFIXES, any case), sorted by name; hidden files are left out.

    Raises DatasetError where the folder is missing, is not a folder, or holds no image.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError(f"The folder {root} does not exist: create it and put the images there, or give another.")
    found = sorted(p for p in root.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    if not found:
        raise DatasetError(f"The folder {root} holds no image: put {', '.join(IMAGE_SUFFIXES)} files there.")
    return found


def read_bytes(path: str | Path) -> bytes:
    """All bytes of a file that is not empty. Raises DatasetError (one sentence: file and cure)."""
    # Reading here, not in OpenCV, is what makes every file name work on every system.
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DatasetError(_unreadable(path, error)) from error
    if not data:
        raise DatasetError(f"{path} is an empty file: copy or export it again.")
    return data


def _unreadable(path: str | Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path} does not exist: check the name."
    return f"{path} cannot be read ({error.strerror}): check that it is a file that you may read."


def _check_header(path: str | Path, header: ImageHeader) -> None:
    if header.palette:
        raise DatasetError(f"{path} holds palette indices, as label maps do, not RGB: give the 8-bit RGB image.")
    if header.cmyk:
        raise DatasetError(f"{path} is a CMYK image: convert it to 8-bit RGB.")


def _decode(path: str | Path, data: bytes) -> npt.NDArray[np.generic]:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DatasetError(f"{path} cannot be decoded ({error.err}): export it as 8-bit RGB PNG or TIFF.") from error
    if image is None:
        raise DatasetError(f"{path} is damaged or no PNG, JPEG, TIFF or BMP image: export it again as 8-bit RGB PNG.")
    return image


def _as_rgb(path: str | Path, image: npt.NDArray[np.generic]) -> UInt8Array:
    if image.ndim == 2 or image.shape[2] == 1:
        raise DatasetError(_one_channel(path, image.reshape(image.shape[:2])))
    if image.dtype != np.uint8:
        raise DatasetError(f"{path} holds {image.dtype} values: convert it to 8-bit RGB.")
    if image.shape[2] == 4 and np.any(image[..., 3] != 255):
        raise DatasetError(f"{path} is partly transparent: flatten it onto white and save it as 8-bit RGB.")
    if image.shape[2] not in (3, 4):
        raise DatasetError(f"{path} has {image.shape[2]} channels: convert it to 8-bit RGB.")
    return np.ascontiguousarray(image[..., 2::-1]).astype(np.uint8, copy=False)


def _one_channel(path: str | Path, image: npt.NDArray[np.generic]) -> str:
    flat = image.shape[1] > 1 and np.mean(image[:, 1:] == image[:, :-1]) > _MAP_IF_EQUAL_NEIGHBOURS
    if flat or image.dtype != np.uint8:
        return f"{path} looks like a label map ({image.dtype}, one channel), not an image: give the 8-bit RGB image."
    return f"{path} is a grey image (one channel): give the H&E image in 8-bit RGB colours."

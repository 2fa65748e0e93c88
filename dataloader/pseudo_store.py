"""Pseudo masks on disk: one .npz a tile, one folder a cycle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import PseudoMask


def save_pseudo_masks(folder: str | Path, masks: list[PseudoMask]) -> None:
    """Write each mask to FOLDER/<tile_id>.npz, under a temporary name first. Raises OSError as the disk does."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for mask in masks:
        path = mask_path(folder, mask.tile_id)
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                np.savez_compressed(
                    file,
                    cycle=np.int64(mask.cycle),
                    inst_map=mask.inst_map,
                    trusted=mask.trusted,
                    confidence=mask.confidence,
                )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def fingerprint(masks: Iterable[PseudoMask]) -> str:
    """SHA-256 of what a set of masks says, in hexadecimal digits, whatever files hold it."""
    digest = hashlib.sha256()
    for mask in masks:
        digest.update(f"{mask.tile_id} {mask.cycle} {mask.inst_map.shape} {len(mask.confidence)}\n".encode())
        for array in (mask.inst_map, mask.trusted, mask.confidence):
            digest.update(array.tobytes())
    return digest.hexdigest()


def load_pseudo_mask(folder: str | Path, tile_id: str) -> PseudoMask:
    """The mask that `save_pseudo_masks` wrote. Raises DatasetError, naming the file, where it cannot be read."""
    path = mask_path(folder, tile_id)
    try:
        with np.load(path) as stored:
            return PseudoMask(
                tile_id, int(stored["cycle"]), stored["inst_map"], stored["trusted"], stored["confidence"]
            )
    except Exception as error:  # a damaged archive makes the reader fail in ways without number
        raise DatasetError(f"{path}: this is no pseudo mask ({error}): give --resume, and it is made again.") from error


def mask_path(folder: str | Path, tile_id: str) -> Path:
    """FOLDER/<tile_id>.npz."""
    return Path(folder) / f"{tile_id}.npz"

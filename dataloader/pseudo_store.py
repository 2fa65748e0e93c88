"""Pseudo masks on disk: one .npz a tile, one folder a cycle."""

from __future__ import annotations

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
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                cycle=np.int64(mask.cycle),
                inst_map=mask.inst_map,
                trusted=mask.trusted,
                confidence=mask.confidence,
            )
        partial.replace(path)


def load_pseudo_mask(folder: str | Path, tile_id: str) -> PseudoMask:
    """The mask that `save_pseudo_masks` wrote. Raises DatasetError, naming the file, where it cannot be read."""
    path = mask_path(folder, tile_id)
    try:
        with np.load(path) as stored:
            return PseudoMask(
                tile_id, int(stored["cycle"]), stored["inst_map"], stored["trusted"], stored["confidence"]
            )
    except Exception as error:  # a damaged archive makes the reader fail in ways without number
        raise DatasetError(f"{path}: this is no pseudo mask ({error}): train again without --resume.") from error


def mask_path(folder: str | Path, tile_id: str) -> Path:
    """FOLDER/<tile_id>.npz."""
    return Path(folder) / f"{tile_id}.npz"

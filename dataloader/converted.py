"""A cache of converted label maps, keyed by the content they were made from: delete it at any time."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from hovernet_cyclic.core.types import Annotation

CACHE_NAME = ".converted"  # hidden, beside the data it was made from
_VERSION = 1  # of the way in which nuclei are painted: another one makes other keys


def content_key(parts: Iterable[tuple[str, bytes]], shape: tuple[int, int]) -> str:
    """A key that changes with any name or byte of the files, with the image's (H, W), and with the conversion."""
    digest = hashlib.sha256(f"{_VERSION} {shape}".encode())
    for name, data in parts:
        digest.update(f"{len(data)} {name}\n".encode())
        digest.update(data)
    return digest.hexdigest()[:32]


def converted(cache_dir: Path, key: str, convert: Callable[[], Annotation]) -> Annotation:
    """What `convert` returns, from the cache where it holds the key.

    A damaged file of the cache is made again; where the folder cannot be written to, there is no cache.
    """
    path = cache_dir / f"{key}.npz"
    stored = _load(path)
    if stored is not None:
        return stored
    made = convert()
    _store(path, made)
    return made


def _load(path: Path) -> Annotation | None:
    try:
        with np.load(path) as stored:
            type_map = stored.get("type_map")
            return Annotation("", stored["inst_map"], type_map, tuple(json.loads(str(stored["notes"]))))
    except Exception:  # missing, or damaged in one of many ways: either way it is made again
        return None


def _store(path: Path, made: Annotation) -> None:
    arrays = {"inst_map": made.inst_map, "notes": np.array(json.dumps(made.notes))}
    if made.type_map is not None:
        arrays["type_map"] = made.type_map
    temporary = None
    try:
        path.parent.mkdir(exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            temporary = Path(file.name)
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    except OSError:
        if temporary is not None:
            temporary.unlink(missing_ok=True)

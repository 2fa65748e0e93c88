"""What is found in a tile, in the files that other tools read.

`json_file` and its like answer with the content of one file; `OutputFolder` puts the files of a tile on disk, all or
none. Coordinates are pixels of the image, x to the right, y down, pixel centres at integers (GeoJSON: see geojson.py).
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from hovernet_cyclic.core.types import Float32Array, Nucleus, RawMaps, SegmentedTile, UInt8Array
from infer.geojson import feature_collection
from infer.overlay import overlay_file
from infer.type_info import TypeInfo

QUPATH_COLUMNS = ("x", "y", "class", "name", "color")
QUPATH_UNTYPED = "no label"
TEMPORARY = ".tmp"
SUFFIXES = {"json": ".json", "mat": ".mat", "overlay": ".png", "geojson": ".geojson", "qupath": ".tsv"}


@dataclass(frozen=True)
class OutputFolder:
    """Where and how the results of tiles are written: root/json/NAME.json, root/mat/NAME.mat and so on.

    types: names and colours, empty where the network tells no types. draw_dot: mark centroids in overlays. save_qupath:
    also write qupath/NAME.tsv. save_raw_map: also put the network's maps into the MAT file.
    """

    root: Path
    types: TypeInfo
    draw_dot: bool = False
    save_qupath: bool = False
    save_raw_map: bool = False

    def paths(self, tile_id: str) -> dict[str, Path]:
        """Folder name -> file, of all files that a tile may have."""
        return {folder: self.root / folder / f"{tile_id}{suffix}" for folder, suffix in SUFFIXES.items()}

    def write(self, tile: SegmentedTile, image: UInt8Array, raw: RawMaps) -> None:
        """Write all files of a tile. image: uint8 (H, W, 3) RGB. Raises OSError where the disk refuses."""
        typed = raw.type_map is not None
        content = {
            "json": json_file(tile.nuclei),
            "mat": mat_file(tile, raw if self.save_raw_map else None, typed),
            "overlay": overlay_file(image, tile, self.types, self.draw_dot),
            "geojson": json.dumps(feature_collection(tile, self.types), ensure_ascii=False).encode(),
        }
        if self.save_qupath:
            content["qupath"] = tsv_file(tile.nuclei, self.types)
        paths = self.paths(tile.tile_id)
        write_together({paths[folder]: data for folder, data in content.items()})

    def discard(self, tile_id: str) -> None:
        """Remove what an earlier run left of a tile, or a process that was killed. Raises OSError where it cannot."""
        for path in self.paths(tile_id).values():
            if path.parent.is_dir():
                prefix = f".{path.name}."
                for file in list(path.parent.iterdir()):
                    if file == path or (file.name.startswith(prefix) and file.suffix == TEMPORARY):
                        file.unlink(missing_ok=True)


def json_file(nuclei: Mapping[int, Nucleus], mag: float | None = None) -> bytes:
    """hover_net's JSON. nuclei: inst_id -> Nucleus. mag: magnification of the coordinates, None for tiles.

    {"mag": ..., "nuc": {"<inst_id>": {"bbox": [[row, column], [row, column]] half-open, "centroid": [x, y],
    "contour": [[x, y], ...] not closed, "type_prob": number or null, "type": integer or null}}}; beside these, where
    types are told, "type_probs": the mean probability of each type over the nucleus, background first.
    """
    content = {"mag": mag, "nuc": {str(inst_id): _described(nucleus) for inst_id, nucleus in nuclei.items()}}
    return json.dumps(content).encode()


def _described(nucleus: Nucleus) -> dict[str, Any]:
    box = nucleus.bbox
    described: dict[str, Any] = {
        "bbox": [[box.top, box.left], [box.bottom, box.right]],
        "centroid": list(nucleus.centroid),
        "contour": nucleus.contour.tolist(),
        "type_prob": nucleus.type_prob,
        "type": nucleus.type_id,
    }
    if nucleus.type_probs is not None:  # after hover_net's own entries, which stay as they are
        described["type_probs"] = [round(prob, 6) for prob in nucleus.type_probs.tolist()]
    return described


def mat_file(tile: SegmentedTile, raw: RawMaps | None = None, typed: bool = False) -> bytes:
    """hover_net's MAT, for N nuclei of an (H, W) tile.

    inst_map int32 (H, W); inst_uid int32 (N, 1); inst_type int64 (N, 1) if typed; inst_centroid float64 (N, 2), x, y;
    raw_map float32 (H, W, 3 or 4), [type,] np probability, h, v, if `raw` is given. Without nuclei inst_uid and
    inst_type are (0, 1) and inst_centroid (0, 0), float64. Beyond hover_net's: inst_type_probs float32 (N, T), the mean
    probability of each type, where nuclei have it.
    """
    content: dict[str, Any] = {"inst_map": tile.inst_map, **_columns(tile.nuclei, typed)}
    if raw is not None:
        content["raw_map"] = _raw_map(raw)
    stream = io.BytesIO()
    savemat(stream, content)
    return stream.getvalue()


def _columns(nuclei: Mapping[int, Nucleus], typed: bool) -> dict[str, Any]:
    if not nuclei:
        empty = {name: np.zeros((0, 1)) for name in ("inst_uid", "inst_type")[: 1 + typed]}
        return {**empty, "inst_centroid": np.zeros((0, 0))}
    columns: dict[str, Any] = {"inst_uid": np.array(list(nuclei), np.int32)[:, None]}
    if typed:
        columns["inst_type"] = np.array([nucleus.type_id or 0 for nucleus in nuclei.values()], np.int64)[:, None]
    columns["inst_centroid"] = np.array([nucleus.centroid for nucleus in nuclei.values()], np.float64)
    probs = [nucleus.type_probs for nucleus in nuclei.values() if nucleus.type_probs is not None]
    return {**columns, "inst_type_probs": np.stack(probs)} if len(probs) == len(nuclei) else columns


def _raw_map(raw: RawMaps) -> Float32Array:
    types = [] if raw.type_map is None else [raw.type_map.astype(np.float32)[..., None]]
    return np.concatenate([*types, raw.np_prob[..., None], raw.hv_map], axis=-1)


def tsv_file(nuclei: Mapping[int, Nucleus], types: TypeInfo) -> bytes:
    """hover_net's table for QuPath: a line per nucleus with QUPATH_COLUMNS, tab separated.

    As there, class stays empty, color is R * 65536 + G * 256 + B, and nuclei without a type are 'no label' in black.
    """
    lines = ["\t".join(QUPATH_COLUMNS)]
    for nucleus in nuclei.values():
        name, (red, green, blue) = QUPATH_UNTYPED, (0, 0, 0)
        if nucleus.type_id is not None:
            name, (red, green, blue) = types.name(nucleus.type_id), types.colour(nucleus.type_id)
        x, y = nucleus.centroid
        lines.append(f"{x}\t{y}\t\t{name}\t{red << 16 | green << 8 | blue}")
    return ("\n".join(lines) + "\n").encode()


def write_together(files: Mapping[Path, bytes]) -> None:
    """Write files, all under temporary names before the first is renamed: a full disk leaves nothing half-written.

    Folders are made as needed. Raises OSError where the disk refuses; then none of the files is there.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}") for path in files}
    placed: list[Path] = []
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path].write_bytes(content)
        for path in files:
            temporary[path].replace(path)
            placed.append(path)
    except BaseException:
        for path in placed:
            path.unlink(missing_ok=True)
        raise
    finally:
        for leftover in temporary.values():
            with contextlib.suppress(OSError):  # of the folder: what went wrong first is what is to be told
                leftover.unlink(missing_ok=True)

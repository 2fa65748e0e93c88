"""Label maps on disk: PNG (8 or 16 bit), TIFF, NPY and MAT, as data sets and hover_net write them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from dataloader.image_headers import parse_header, torn_part
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.label_maps import instance_areas, instance_indices
from hovernet_cyclic.core.types import Annotation, Int32Array, UInt8Array

LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".npy", ".mat")
# Names of one map: hover_net's and CoNSeP's, and those of the ccRCC grading set and the crops made from both.
MAT_NAMES = {"inst_map": ("inst_map", "instance_map"), "type_map": ("type_map", "class_map")}
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_LARGEST_ID = np.iinfo(np.int32).max


def list_label_files(folder: str | Path) -> dict[str, Path]:
    """Stem -> file, sorted, of the label maps directly in a folder; of its `mat/` where there is one (hover_net).

    Raises DatasetError for a folder that is missing or holds none, and for two files of one stem.
    """
    root = Path(folder)
    if not root.is_dir():
        raise DatasetError(f"The folder {root} does not exist: check the name.")
    if (root / "mat").is_dir():
        root = root / "mat"
    found: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        if path.suffix.lower() not in LABEL_SUFFIXES or path.name.startswith("."):
            continue
        if path.stem in found:
            raise DatasetError(f"{found[path.stem]} and {path} have one name: keep only one of them.")
        found[path.stem] = path
    if not found:
        raise DatasetError(f"The folder {root} holds no label map: put {', '.join(LABEL_SUFFIXES)} files there.")
    return found


def read_label_map(path: str | Path, type_path: str | Path | None = None) -> Annotation:
    """One label map; tile_id is the file's stem, inst_map int32 (H, W).

    PNG, TIFF: one channel. NPY: (H, W), or (H, W, 2) of instances then types. MAT: `inst_map`, and where present
    `type_map`, or `inst_type` (N, 1) in the order of `inst_uid` (else of ascending ids; (N, 2) is id, type);
    `instance_map` and `class_map` (see MAT_NAMES) serve too.
    type_path: a type map (H, W) of its own (PNG, TIFF, NPY or MAT with `type_map`), which then counts. type_map is
    uint8 (H, W), or None where nothing tells the types. Raises DatasetError (one sentence: file and cure).
    """
    path = Path(path)
    inst_map, type_map = _read(path)
    if type_path is not None:
        type_map = _read_type_map(Path(type_path))
        if type_map.shape != inst_map.shape:
            raise DatasetError(
                f"{path} has {_size(inst_map)} px but its type map {type_path} has {_size(type_map)}: "
                "give maps of the same image."
            )
    return Annotation(tile_id=path.stem, inst_map=inst_map, type_map=type_map)


def _read(path: Path) -> tuple[Int32Array, UInt8Array | None]:
    """inst_map int32 (H, W) and type_map uint8 (H, W) or None, whatever the format."""
    if path.suffix.lower() == ".mat":
        return _from_mat(path, _load_mat(path))
    values = _load_npy(path) if path.suffix.lower() == ".npy" else _load_image(path)
    if values.ndim == 3 and values.shape[2] == 2:
        return _as_inst_map(path, values[..., 0]), _as_type_map(path, values[..., 1])
    return _as_inst_map(path, values), None


def _read_type_map(path: Path) -> UInt8Array:
    if path.suffix.lower() != ".mat":
        values = _load_npy(path) if path.suffix.lower() == ".npy" else _load_image(path)
        return _as_type_map(path, values)
    content = _load_mat(path)
    if "type_map" not in content:
        raise DatasetError(f"{path} holds no 'type_map': give a type map, or leave the types out.")
    return _as_type_map(path, content["type_map"])


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise DatasetError(f"{path} cannot be read ({reason}): check that it is a file that you may read.") from error
    if not data:
        raise DatasetError(f"{path} is an empty file: copy or export it again.")
    return data


def _load_image(path: Path) -> npt.NDArray[Any]:
    data = _read_bytes(path)
    header, torn = parse_header(data), torn_part(data)
    if torn:
        raise DatasetError(f"{path} is damaged ({torn}): copy or export it again.")
    if header is not None and header.palette:
        raise DatasetError(f"{path} is a palette image: save the label map as one channel of 8 or 16 bits.")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise DatasetError(f"{path} cannot be decoded ({error.err}): export it as a 16-bit PNG.") from error
    if image is None:
        raise DatasetError(f"{path} is damaged or of a kind that cannot be read: export it as a 16-bit PNG or as NPY.")
    if image.ndim == 3 and image.shape[2] > 1:
        raise DatasetError(
            f"{path} has {image.shape[2]} channels: a label map has one, with a number for each nucleus."
        )
    return image


def _load_npy(path: Path) -> npt.NDArray[Any]:
    data = _read_bytes(path)
    try:
        loaded = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DatasetError(f"{path} is damaged or no NPY array of numbers: save the label map again.") from error
    if not isinstance(loaded, np.ndarray):
        raise DatasetError(f"{path} holds several arrays: save the label map alone with numpy.save.")
    return loaded


def _load_mat(path: Path) -> dict[str, Any]:
    # SciPy takes a third of a second to import; folders of PNG do not need it.
    from scipy.io import loadmat

    data = _read_bytes(path)
    if _HDF5_SIGNATURE in (data[:8], data[512:520]):  # MATLAB puts its own 512 bytes before the HDF5 file
        raise DatasetError(_save_as_v7(path))
    try:
        content: dict[str, Any] = loadmat(io.BytesIO(data))
    except NotImplementedError as error:
        raise DatasetError(_save_as_v7(path)) from error
    except Exception as error:  # a damaged file makes the reader fail in ways without number
        raise DatasetError(f"{path} is damaged or no MAT file: copy or save it again.") from error
    return _known_names(content)


def _save_as_v7(path: Path) -> str:
    return f"{path} is in MATLAB's 7.3 format (HDF5): save it again with the option '-v7'."


def _known_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its maps under hover_net's names."""
    found = {
        ours: next((content[name] for name in names if name in content), None) for ours, names in MAT_NAMES.items()
    }
    return {**content, **{ours: value for ours, value in found.items() if value is not None}}


def _from_mat(path: Path, content: Mapping[str, Any]) -> tuple[Int32Array, UInt8Array | None]:
    if "inst_map" not in content:
        named = ", ".join(sorted(key for key in content if not key.startswith("__"))) or "nothing"
        raise DatasetError(f"{path} holds no 'inst_map' (it holds {named}): save the label map under that name.")
    inst_map = _as_inst_map(path, content["inst_map"])
    if "type_map" in content:
        type_map = _as_type_map(path, content["type_map"])
        if type_map.shape != inst_map.shape:
            raise DatasetError(f"{path} has an 'inst_map' and a 'type_map' of unlike shape: save them again.")
        return inst_map, type_map
    return inst_map, _paint_types(path, inst_map, content) if "inst_type" in content else None


def _paint_types(path: Path, inst_map: Int32Array, content: Mapping[str, Any]) -> UInt8Array:
    """uint8 (H, W): each nucleus in its type, 0 where the file names none for it."""
    ids = instance_areas(inst_map)[0]
    stored: npt.NDArray[Any] = np.asarray(content["inst_type"])
    named: npt.NDArray[Any] = np.asarray(content.get("inst_uid", ids)).ravel()
    if "inst_uid" not in content and stored.shape == (len(ids), 2):  # early hover_net: rows of (id, type)
        named, stored = stored[:, 0], stored[:, 1]
    if stored.size != named.size:
        raise DatasetError(f"{path} names {stored.size} types for {named.size} nuclei: save 'inst_type' again.")
    types = _as_type_map(path, stored.reshape(-1, 1)).ravel() if stored.size else np.zeros(0, np.uint8)
    type_of = dict(zip(named.astype(np.int64).tolist(), types.tolist(), strict=True))
    table = np.array([0, *(type_of.get(inst_id, 0) for inst_id in ids.tolist())], np.uint8)
    painted: UInt8Array = table[instance_indices(inst_map, ids)]
    return painted


def _as_inst_map(path: Path, values: npt.NDArray[Any]) -> Int32Array:
    checked = _whole_numbers(path, values, _LARGEST_ID)
    bytes_of_two_values = values.dtype == np.uint8 and checked.max() == 255 and np.isin(checked, (0, 255)).all()
    if values.dtype == np.bool_ or bytes_of_two_values:
        raise DatasetError(f"{path} is a black-and-white mask: a label map gives each nucleus a number of its own.")
    return checked.astype(np.int32)


def _as_type_map(path: Path, values: npt.NDArray[Any]) -> UInt8Array:
    return _whole_numbers(path, values, 255).astype(np.uint8)


def _whole_numbers(path: Path, values: npt.NDArray[Any], largest: int) -> npt.NDArray[Any]:
    """The values as (H, W), once they are known to be whole numbers from 0 to `largest`."""
    flat = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    if flat.ndim != 2 or flat.size == 0:
        raise DatasetError(f"{path} holds an array of shape {values.shape}: a label map is (height, width).")
    if flat.dtype.kind not in "biuf":
        raise DatasetError(f"{path} holds {flat.dtype} values: a label map holds whole numbers.")
    # NaN fails the comparison with its own rounding.
    if flat.dtype.kind == "f" and not (flat == np.round(flat)).all():
        raise DatasetError(f"{path} holds values that are not whole numbers: save the label map, not a probability.")
    if flat.min() < 0 or flat.max() > largest:
        raise DatasetError(f"{path} holds values outside 0..{largest}: number background 0 and the rest from 1.")
    return flat


def _size(values: npt.NDArray[Any]) -> str:
    return f"{values.shape[0]} x {values.shape[1]}"

"""OME-Zarr (NGFF 0.4 and 0.5) through zarr: one image, its levels as arrays, local or remote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zarr

from dataloader.readers.faults import damaged, is_remote, plausible_mpp, read_fault
from hovernet_cyclic.core.errors import SlideError
from hovernet_cyclic.core.types import Box, UInt8Array

_UM = {"micrometer": 1.0, "micron": 1.0, "nanometer": 1e-3, "millimeter": 1e3, "meter": 1e6}


class OmeZarrReader:
    """A `SlideReader` of the first multiscale image of a group. Raises SlideError for what is no 8-bit RGB image."""

    origin: tuple[int, int] = (0, 0)
    magnification: float | None = None

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            group = zarr.open_group(path, mode="r")
            image = _multiscale(group.attrs.asdict())
            self._axes = [axis["name"] if isinstance(axis, Mapping) else axis for axis in image["axes"]]
            self._levels: list[Any] = [group[level["path"]] for level in image["datasets"]]
        except Exception as error:  # a damaged group makes zarr fail in many ways
            raise damaged(path, error) from error
        first = self._levels[0]
        if not _fits(self._axes, first):
            raise SlideError(
                f"{path} holds {first.dtype} {self._axes} {first.shape}, not 8-bit RGB: export it as that."
            )
        down, across = self._axes.index("y"), self._axes.index("x")
        self.level_shapes = tuple((level.shape[down], level.shape[across]) for level in self._levels)
        self.mpp = plausible_mpp(*_scales(image))

    def read(self, level: int, box: Box) -> UInt8Array:
        """See SlideReader."""
        extent = {"y": slice(box.top, box.bottom), "x": slice(box.left, box.right), "c": slice(0, 3)}
        try:
            values = np.asarray(self._levels[level][tuple(extent.get(axis, slice(0, 1)) for axis in self._axes)])
        except Exception as error:  # each codec and store fails in its own way
            raise read_fault(self.path, level, box, error) from error
        kept = [axis for axis in self._axes if axis in extent]
        values = values.reshape([size for size, axis in zip(values.shape, self._axes, strict=True) if axis in extent])
        return np.ascontiguousarray(values.transpose([kept.index(axis) for axis in "yxc"]), dtype=np.uint8)

    def close(self) -> None:
        """See SlideReader."""


def is_ome_zarr(path: str) -> bool:
    """Whether a path is named as an OME-Zarr group is."""
    return path.rstrip("/").lower().endswith(".zarr") or (is_remote(path) and ".zarr/" in path)


def _multiscale(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first image of the metadata: version 0.5 keeps it under 'ome'."""
    scales: Sequence[Mapping[str, Any]] = attributes.get("ome", attributes)["multiscales"]
    return scales[0]


def _fits(axes: Sequence[str], array: Any) -> bool:
    sizes = dict(zip(axes, array.shape, strict=True))
    others = [size for axis, size in sizes.items() if axis not in "yxc"]
    return array.dtype == np.uint8 and sizes.get("c") in (3, 4) and {"y", "x"} <= set(axes) and set(others) <= {1}


def _scales(image: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """um/px of level 0 (down, across); None where there is no scale, or one without a unit of length."""
    transforms = image["datasets"][0].get("coordinateTransformations", [])
    scale = next((one["scale"] for one in transforms if one.get("type") == "scale"), None)
    sizes: dict[str, float] = {}
    for axis, size in zip(image["axes"], scale or [], strict=False):
        if isinstance(axis, Mapping) and axis.get("unit") in _UM:
            sizes[axis["name"]] = size * _UM[axis["unit"]]
    return sizes.get("y"), sizes.get("x")

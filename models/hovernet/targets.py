"""Instance maps to what HoVer-Net's branches are trained towards.

Source of the arithmetic: Graham et al., HoVer-Net, Medical Image Analysis 58, 2019, section 3.1, as computed by the
authors' code (each pixel of a nucleus holds its distance to the rounded centre of mass, scaled on each side to 1).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.measure import label

from hovernet_cyclic.core.types import BoolArray, Float32Array, HoVerTargets, Int32Array, UInt8Array

SMALLEST_AREA = 30  # px of an instance within the output below which it gets no hv
BORDER = 2  # px at the top and left of the map: a nucleus that reaches into them gets no hv in the authors' code


def hover_targets(
    inst_map: Int32Array,
    output_shape: tuple[int, int],
    type_map: UInt8Array | None = None,
    trusted: BoolArray | None = None,
    keep_border: bool = False,
) -> HoVerTargets:
    """Targets for the central `output_shape` (h, w) px of an instance map.

    inst_map: integer (H, W), 0 background. type_map: uint8 (H, W) or None. trusted: bool (H, W), or None for all.
    hv is measured from the centre of the whole nucleus, also where the output shows only a part of it; parts of one id
    that do not touch count as nuclei of their own. keep_border: nuclei that reach into the first two rows or columns of
    the map get hv like all others; else none, as in the authors' code, where their box wraps round. Raises ValueError
    where the map is smaller than the output.
    """
    crop = _centre(inst_map.shape, output_shape)
    trust = np.ones(output_shape, np.bool_) if trusted is None else np.array(trusted[crop], np.bool_)
    return HoVerTargets(
        np_map=(inst_map[crop] > 0).astype(np.int64),
        hv_map=_hv_map(inst_map, crop, keep_border),
        type_map=None if type_map is None else type_map[crop].astype(np.int64),
        trusted=trust,
    )


def _centre(shape: tuple[int, ...], wanted: tuple[int, int]) -> tuple[slice, slice]:
    if shape[0] < wanted[0] or shape[1] < wanted[1]:
        raise ValueError(f"an instance map of {shape} px cannot be cropped to {wanted} px")
    top, left = (shape[0] - wanted[0]) // 2, (shape[1] - wanted[1]) // 2
    return slice(top, top + wanted[0]), slice(left, left + wanted[1])


def _hv_map(inst_map: Int32Array, crop: tuple[slice, slice], keep_border: bool) -> Float32Array:
    """float32 (h, w, 2): horizontal, then vertical, each in [-1, 1]; 0 outside and where too little is shown."""
    pieces = np.asarray(label(inst_map, background=0, connectivity=1), np.intp)  # type: ignore[no-untyped-call]
    shown = pieces[crop]
    hv_map = np.zeros((*shown.shape, 2), np.float32)
    count = int(pieces.max(initial=0))
    if count == 0:
        return hv_map
    areas = np.bincount(pieces.ravel(), minlength=count + 1)
    kept = np.bincount(shown.ravel(), minlength=count + 1) >= SMALLEST_AREA
    kept[0] = False
    if not keep_border:
        kept[pieces[:BORDER]] = False
        kept[pieces[:, :BORDER]] = False
    rows, columns = np.nonzero(kept[shown])
    ids = shown[rows, columns]
    places = np.nonzero(pieces)
    boxes = ndimage.find_objects(pieces)
    # axis 1 (columns) is the horizontal map, axis 0 (rows) the vertical one
    for channel, (axis, shown_at) in enumerate(((1, columns), (0, rows))):
        ends = np.array([(0, 0)] + [(box[axis].start, box[axis].stop - 1) for box in boxes])
        centres = _centres(places[axis], pieces[places], areas)
        hv_map[rows, columns, channel] = _scaled(shown_at + crop[axis].start, ids, centres, ends)
    return hv_map


def _centres(
    places: npt.NDArray[np.intp], ids: npt.NDArray[np.intp], areas: npt.NDArray[np.intp]
) -> npt.NDArray[np.intp]:
    """Per id the mean of `places`, rounded to the nearest pixel, halves up. areas: pixels of each id."""
    sums = np.bincount(ids, weights=places, minlength=areas.size)
    centres: npt.NDArray[np.intp] = np.floor(sums / np.maximum(areas, 1) + 0.5).astype(np.intp)
    return centres


def _scaled(
    places: npt.NDArray[np.intp], ids: npt.NDArray[np.intp], centres: npt.NDArray[np.intp], ends: npt.NDArray[np.intp]
) -> Float32Array:
    """Distance to the centre over the largest on that side. The reference counts the centre's own pixel as 1."""
    distance = (places + 1 - centres[ids]).astype(np.float32)
    before = (centres - 1 - ends[:, 0])[ids].astype(np.float32)
    after = (ends[:, 1] + 1 - centres)[ids].astype(np.float32)
    return np.asarray(distance / np.where(distance < 0, before, after), dtype=np.float32)

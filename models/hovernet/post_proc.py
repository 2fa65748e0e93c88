"""Raw maps to instances: where nuclei meet, the hv maps jump, and a watershed cuts there.

Source: Graham et al., HoVer-Net, Medical Image Analysis 58, 2019, section 3.2. Variant 'hovernet' is the authors'
arithmetic to the pixel: its scales are the extremes of the whole tile, so one strong artefact changes nuclei far away.
Variant 'local', the default, does the same with fixed scales: what is found at a nucleus depends on its
neighbourhood only, so a nucleus is the same however a slide is cut into tiles.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.segmentation import watershed

from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.label_maps import relabel, remove_small
from hovernet_cyclic.core.types import BoolArray, Float32Array, Int32Array, RawMaps

NUCLEUS_PROB = 0.5
SMALLEST_AREA = 10  # px, of a region of nuclei and of a marker
EDGE = 0.4  # edge strength from which a pixel parts two nuclei
HOVERNET_KSIZE = 21
# Variant 'local'. Its constants were chosen on drawn nuclei: targets made from them, as they are and blurred and noisy,
# had to come back as the same nuclei, and so had the maps of a small network trained on other images.
LOCAL_KSIZE = 11
# What counts as edge strength 0 and 1, where +1 is the jump from one nucleus to the next (hv from 1 to -1) and negative
# is the slope inside a nucleus. With EDGE this parts nuclei at a strength of 0.03.
LOCAL_RANGE = (-0.57, 0.93)
LOCAL_LARGEST_HOLE = 100  # px that a marker may enclose and be filled
LOCAL_SMALLEST = 30  # px of a region without a marker that is a nucleus all the same: from here on targets hold hv

FloatArray = npt.NDArray[np.floating]


def segment(raw: RawMaps, variant: str = "local", smallest: int = SMALLEST_AREA) -> Int32Array:
    """int32 (H, W) inst_map of a tile, 0 background. raw: see RawMaps.

    variant: 'local' numbers nuclei 1..N and leaves out those under `smallest` px; 'hovernet' keeps the reference's
    numbers, which may have gaps, and its own smallest area.
    Raises RecipeError for another variant.
    """
    nuclei = _drop_small(raw.np_prob >= NUCLEUS_PROB, SMALLEST_AREA)
    if variant == "local":
        inst_map = _cut(nuclei, _local_edges(raw.hv_map), LOCAL_LARGEST_HOLE)
        return relabel(remove_small(_add_unmarked(inst_map, nuclei), smallest))
    if variant == "hovernet":
        return _cut(nuclei, _hovernet_edges(raw.hv_map), largest_hole=nuclei.size)
    raise RecipeError(f"The post-processing is '{variant}': use one of local, hovernet.")


def _regions(mask: BoolArray) -> tuple[Int32Array, Int32Array]:
    """Regions of a mask whose pixels touch by their sides: numbers int32 (H, W) and the area in px of each, 0 first."""
    if mask.size == 0:
        return np.zeros(mask.shape, np.int32), np.zeros(1, np.int32)
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    return np.asarray(numbers, np.int32), np.asarray(stats[:, cv2.CC_STAT_AREA], np.int32)


def _drop_small(mask: BoolArray, smallest: int) -> BoolArray:
    numbers, areas = _regions(mask)
    kept = areas >= smallest
    kept[0] = False
    return np.asarray(kept[numbers], dtype=np.bool_)


def _hovernet_edges(hv_map: Float32Array) -> FloatArray:
    """Edge strength (H, W) in [0, 1], scaled to the extremes of the tile twice, as the reference does."""
    h_map, v_map = (_min_max(np.ascontiguousarray(hv_map[..., channel], np.float32)) for channel in (0, 1))
    across = 1 - _min_max(cv2.Sobel(h_map, cv2.CV_64F, 1, 0, ksize=HOVERNET_KSIZE))
    down = 1 - _min_max(cv2.Sobel(v_map, cv2.CV_64F, 0, 1, ksize=HOVERNET_KSIZE))
    return np.maximum(across, down).astype(np.float64)  # from here on the reference counts in float64


def _min_max(values: npt.NDArray[Any]) -> FloatArray:
    """float32, the least 0 and the largest 1; a flat map is 0."""
    scaled = np.empty(values.shape, np.float32)
    cv2.normalize(values, scaled, alpha=0, beta=1, norm_type=cv2.NORM_MINMAX, dtype=cv2.CV_32F)
    return scaled


def _local_edges(hv_map: Float32Array) -> FloatArray:
    """Edge strength float32 (H, W) in [0, 1] with fixed scales, see LOCAL_RANGE."""
    lowest, highest = LOCAL_RANGE
    derive, smooth = cv2.getDerivKernels(1, 0, LOCAL_KSIZE)
    # A jump of 2 answers with -2 * (sum of one half of `derive`) * (sum of `smooth`): take that as 1.
    derive = derive / (-2 * derive[derive > 0].sum())
    smooth = smooth / smooth.sum()
    hv = np.clip(hv_map.astype(np.float32, copy=False), -1, 1)
    across = cv2.sepFilter2D(np.ascontiguousarray(hv[..., 0]), cv2.CV_32F, derive, smooth)
    down = cv2.sepFilter2D(np.ascontiguousarray(hv[..., 1]), cv2.CV_32F, smooth, derive)
    return np.clip((np.maximum(across, down) - lowest) / (highest - lowest), 0, 1)


def _cut(nuclei: BoolArray, edges: FloatArray, largest_hole: int) -> Int32Array:
    """int32 (H, W): markers are what edges leave of the nuclei, and grow back over them.

    nuclei: bool (H, W). edges: (H, W) in [0, 1].
    """
    edges = np.where(nuclei, edges, 0)
    inside = nuclei & (edges < EDGE)
    markers = _markers(inside, largest_hole)
    heights = cv2.GaussianBlur((1.0 - edges) * nuclei, (3, 3), 0)
    return _grow(markers, -np.asarray(heights, dtype=edges.dtype), nuclei)


def _markers(inside: BoolArray, largest_hole: int) -> Int32Array:
    """int32 (H, W): one number per marker: holes filled, opened by a disc of 5 px, small ones left out."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(_fill_holes(inside, largest_hole).astype(np.uint8), cv2.MORPH_OPEN, disc)
    return remove_small(ndimage.label(opened)[0], SMALLEST_AREA)


def _fill_holes(mask: BoolArray, largest: int) -> BoolArray:
    """The mask and what it encloses, up to `largest` px a hole: what is outside reaches the border of the tile."""
    numbers, areas = _regions(~mask)
    enclosed = areas <= largest
    enclosed[0] = True  # the mask itself
    for border in (numbers[:1], numbers[-1:], numbers[:, :1], numbers[:, -1:]):
        enclosed[border[border > 0]] = False
    return np.asarray(enclosed[numbers], dtype=np.bool_)


def _grow(markers: Int32Array, heights: FloatArray, nuclei: BoolArray) -> Int32Array:
    """Watershed of `heights` from `markers` within `nuclei`, region by region: the same as on the whole tile.

    A region that holds one marker is that nucleus; one that holds none is dropped.
    """
    regions, areas = _regions(nuclei)
    marked = np.nonzero((markers > 0) & nuclei)
    lowest, highest = np.full(areas.size, np.iinfo(np.int32).max, np.int32), np.zeros(areas.size, np.int32)
    np.minimum.at(lowest, regions[marked], markers[marked])
    np.maximum.at(highest, regions[marked], markers[marked])
    inst_map: Int32Array = highest[regions]
    boxes = ndimage.find_objects(regions)
    for region in np.flatnonzero(highest > lowest):
        box = boxes[region - 1]
        here = regions[box] == region
        grown = watershed(heights[box], markers=markers[box] * here, mask=here)  # type: ignore[no-untyped-call]
        inst_map[box][here] = grown[here]
    return inst_map


def _add_unmarked(inst_map: Int32Array, nuclei: BoolArray) -> Int32Array:
    """Regions too small or thin for a marker, but not for a nucleus, as nuclei of their own."""
    numbers, areas = _regions(nuclei & (inst_map == 0))
    added = np.where(areas >= LOCAL_SMALLEST, np.arange(areas.size) + inst_map.max(initial=0), 0)
    added[0] = 0
    return np.asarray(np.where(inst_map > 0, inst_map, added[numbers]), dtype=np.int32)

"""Raw maps to instances: where nuclei meet, the hv maps jump, and a watershed cuts there.

Source: Graham et al., HoVer-Net, Medical Image Analysis 58, 2019, section 3.2. Variant 'hovernet' is the authors'
arithmetic to the pixel: its scales are the extremes of the whole tile, so one strong artefact changes nuclei far away.
Variant 'local', the default, does the same with fixed scales: what is found at a nucleus depends on its
neighbourhood only, so a nucleus is the same however a slide is cut into tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from skimage.segmentation import watershed

from hovernet_cyclic.core import runs
from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.label_maps import instance_areas, instance_indices
from hovernet_cyclic.core.types import BoolArray, Float32Array, Int32Array, Int64Array, RawMaps, UInt8Array

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
REGIONS_AT_ONCE = 25  # of a watershed: fewer begin anew too often, more wait in too long a queue (5 to 400 were timed)
PIXELS_AT_ONCE = 1 << 20  # and so many px in their boxes, which may overlap: a canvas is not to outgrow its tile
LOCAL_SMALLEST = 30  # px of a region without a marker that is a nucleus all the same: from here on targets hold hv

FloatArray = npt.NDArray[np.floating]


def segment(raw: RawMaps, variant: str = "local", smallest: int = SMALLEST_AREA) -> Int32Array:
    """int32 (H, W) inst_map of a tile, 0 background. raw: see RawMaps.

    variant: 'local' numbers nuclei 1..N and leaves out those under `smallest` px; 'hovernet' keeps the reference's
    numbers, which may have gaps, and its own smallest area.
    Raises RecipeError for another variant.
    """
    if variant not in ("local", "hovernet"):
        raise RecipeError(f"The post-processing is '{variant}': use one of local, hovernet.")
    regions = _regions((raw.np_prob >= NUCLEUS_PROB).view(np.uint8), SMALLEST_AREA)
    hv_map = raw.hv_map.astype(np.float32, copy=False)
    if variant == "hovernet":
        markers, heights = _markers(regions, _hovernet_edges(hv_map), largest_hole=regions.numbers.size)
        return _grow(markers, heights, regions, _reference_numbers)
    markers, heights = _markers(regions, _local_edges(hv_map), LOCAL_LARGEST_HOLE)
    inst_map = _grow(markers, heights, regions, _local_numbers)
    if smallest <= SMALLEST_AREA:
        return inst_map
    ids, areas = instance_areas(inst_map)
    return instance_indices(inst_map, ids[areas >= smallest])


Part = tuple[slice, slice]


class Regions(NamedTuple):
    """Regions of a mask whose pixels touch by their sides, those of too few pixels left out.

    numbers: int32 (H, W), 0 where there is none; in reading order of their first pixels, with gaps. areas: int64 (R,)
    px, by number. boxes: int32 (R, 4), top, left, bottom, right, half-open. kept: bool (R,), whether it is
    in use.
    """

    numbers: Int32Array
    areas: Int64Array
    boxes: Int32Array
    kept: BoolArray


def _regions(mask: UInt8Array, smallest: int) -> Regions:
    """The regions of a mask, uint8 (H, W) 0 or not, of `smallest` px or more."""
    if mask.size == 0:
        return Regions(
            np.zeros(mask.shape, np.int32), np.zeros(1, np.int64), np.zeros((1, 4), np.int32), np.zeros(1, bool)
        )
    count, numbers = cv2.connectedComponents(mask, connectivity=4)
    # Areas and boxes are had from runs in half the time that OpenCV takes for its statistics.
    found = runs.runs_of(np.asarray(numbers, np.int32))
    areas = runs.areas(found, found.values, count)
    kept = areas >= smallest
    kept[0] = False
    if not kept[1:].all():
        numbers = np.repeat((found.values * kept[found.values]), found.lengths).reshape(mask.shape)
    return Regions(np.asarray(numbers, np.int32), areas, runs.boxes(found, found.values, count), kept)


def _hovernet_edges(hv_map: Float32Array) -> FloatArray:
    """Edge strength (H, W) in [0, 1], scaled to the extremes of the tile twice, as the reference does."""
    h_map, v_map = (_min_max(channel) for channel in cv2.split(hv_map))
    across = 1 - _min_max(cv2.Sobel(h_map, cv2.CV_64F, 1, 0, ksize=HOVERNET_KSIZE))
    down = 1 - _min_max(cv2.Sobel(v_map, cv2.CV_64F, 0, 1, ksize=HOVERNET_KSIZE))
    return np.maximum(across, down, out=across).astype(np.float64)  # from here on the reference counts in float64


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
    h_map, v_map = (np.clip(channel, -1, 1, out=channel) for channel in cv2.split(hv_map))
    across = cv2.sepFilter2D(h_map, cv2.CV_32F, derive, smooth)
    down = cv2.sepFilter2D(v_map, cv2.CV_32F, smooth, derive)
    edges = np.maximum(across, down, out=across)
    edges -= lowest
    edges /= highest - lowest
    return np.clip(edges, 0, 1, out=edges)


def _markers(regions: Regions, edges: FloatArray, largest_hole: int) -> tuple[Int32Array, FloatArray]:
    """What edges leave of the nuclei: markers int32 (H, W), one number each, and the heights (H, W) they grow over.

    Their holes are filled, they are opened by a disc of 5 px, and small ones are left out. edges: (H, W) in [0, 1],
    written over.
    """
    nuclei = regions.numbers > 0
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    filled = _fill_holes(nuclei & (edges < EDGE), largest_hole)
    opened = np.asarray(cv2.morphologyEx(filled, cv2.MORPH_OPEN, disc), np.uint8)
    np.subtract(1.0, edges, out=edges)
    edges *= nuclei
    heights = np.asarray(cv2.GaussianBlur(edges, (3, 3), 0), dtype=edges.dtype)
    return _regions(opened, SMALLEST_AREA).numbers, np.negative(heights, out=heights)


def _fill_holes(mask: BoolArray, largest: int) -> UInt8Array:
    """The mask and what it encloses, up to `largest` px a hole: what is outside reaches the border of the tile."""
    filled = mask.view(np.uint8)
    outside = _regions(np.logical_not(mask).view(np.uint8), 1)
    top, left, bottom, right = outside.boxes.T
    inner = (top > 0) & (left > 0) & (bottom < mask.shape[0]) & (right < mask.shape[1])
    for number in np.flatnonzero(inner & outside.kept & (outside.areas <= largest)):
        box = _slices(outside.boxes[number])
        filled[box][outside.numbers[box] == number] = 1
    return filled


def _slices(box: Int32Array) -> Part:
    top, left, bottom, right = box.tolist()
    return slice(top, bottom), slice(left, right)


class Marked(NamedTuple):
    """Which markers lie where, for R regions.

    used: bool (M,), by number of marker, whether any region holds it. marker: int32 (R,), one that the region holds, 0
    without any. several: numbers of the regions that hold more than one.
    """

    used: BoolArray
    marker: Int32Array
    several: Int32Array


def _marked(markers: Int32Array, regions: Regions) -> Marked:
    starts = runs.run_starts(markers, regions.numbers)  # each marker in each region has a run
    starts = starts[markers.ravel()[starts] > 0]
    where, which = regions.numbers.ravel()[starts], markers.ravel()[starts]
    used = np.zeros(int(which.max(initial=0)) + 1, np.bool_)
    used[which[where > 0]] = True
    marker = np.zeros(regions.areas.size, np.int32)
    marker[where] = which  # of several, the last in reading order
    marker[0] = 0
    several = np.unique(where[which != marker[where]])
    return Marked(used, marker, several[several > 0])


Numbers = tuple[Int32Array, Int32Array]


def _reference_numbers(marked: Marked, regions: Regions) -> Numbers:
    """Nuclei have the numbers of their markers, as in the reference; a region without a marker is none."""
    return np.arange(marked.used.size, dtype=np.int32), np.zeros(regions.areas.size, np.int32)


def _local_numbers(marked: Marked, regions: Regions) -> Numbers:
    """Nuclei are 1..N in the order of their markers, and after them regions too small or thin for a marker.

    Such a region is a nucleus of its own if it is large enough.
    """
    of_markers = np.cumsum(marked.used, dtype=np.int32) * marked.used
    alone = regions.kept & (marked.marker == 0) & (regions.areas >= LOCAL_SMALLEST)
    return of_markers, (np.cumsum(alone, dtype=np.int32) + of_markers.max(initial=0)) * alone


class Ground(NamedTuple):
    """What markers grow over.

    markers: int32 (H, W), 0 where there is none. heights: floating (H, W). rim: bool (H, W), pixels of regions that are
    in no marker or beside such a pixel: the rest of a marker has nothing to grow over.
    """

    markers: Int32Array
    heights: FloatArray
    regions: Regions
    rim: BoolArray


def _grow(
    markers: Int32Array, heights: FloatArray, regions: Regions, numbers: Callable[[Marked, Regions], Numbers]
) -> Int32Array:
    """Watershed of `heights` from `markers` within regions: the same as on the whole tile.

    A region that holds one marker is that nucleus. numbers: what nuclei are called, int32 by number of their marker,
    and by number of a region without one (0: no nucleus).
    """
    marked = _marked(markers, regions)
    of_markers, of_regions = numbers(marked, regions)
    inst_map: Int32Array = np.where(marked.marker > 0, of_markers[marked.marker], of_regions).take(regions.numbers)
    ground = Ground(markers, heights, regions, _rim(markers, regions))
    tied = _tied(ground, marked.several)
    untied = np.setdiff1d(marked.several, tied)
    for group in (*_groups(untied, regions), *tied[:, None]):
        for part, here, which in _flooded(ground, group):
            np.copyto(inst_map[part], of_markers[which], where=here)
    return inst_map


def _groups(chosen: Int32Array, regions: Regions) -> list[Int32Array]:
    """The chosen regions in their order, as many at a time as one watershed is to take."""
    top, left, bottom, right = regions.boxes[chosen].astype(np.int64).T
    filled = np.cumsum((bottom - top) * (right - left)) // PIXELS_AT_ONCE
    counted = np.arange(chosen.size) // REGIONS_AT_ONCE
    return np.split(chosen, 1 + np.flatnonzero((np.diff(filled) > 0) | (np.diff(counted) > 0)))


def _rim(markers: Int32Array, regions: Regions) -> BoolArray:
    """bool (H, W), see Ground; of background too what is beside an unmarked pixel."""
    unmarked = ((regions.numbers > 0) & (markers == 0)).view(np.uint8)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    return np.asarray(cv2.dilate(unmarked, cross) if unmarked.size else unmarked, np.uint8).view(np.bool_)


def _tied(ground: Ground, several: Int32Array) -> Int32Array:
    """Which of the regions, ascending numbers, hold two markers that begin to grow at the very same height, or nan.

    The watershed takes pixels by height, then by how long they have waited. Where a marker begins, all have waited
    equally long, and among pixels of one height its queue decides, which depends on whatever else waits there. A height
    that is no number puts the whole queue out of order.
    """
    holds_several = np.zeros(ground.regions.areas.size, np.bool_)
    holds_several[several] = True
    places = np.flatnonzero(ground.rim & (ground.markers > 0))
    places = places[holds_several[ground.regions.numbers.ravel()[places]]]
    heights = ground.heights.ravel()
    unordered = ground.regions.numbers[~np.isfinite(ground.heights)]
    ascending = np.sort(heights[places])
    # Few begin at a height that another begins at too: the rest need not be put in order.
    places = places[np.isin(heights[places], ascending[1:][ascending[1:] == ascending[:-1]])]
    where, which = ground.regions.numbers.ravel()[places], ground.markers.ravel()[places]
    order = np.lexsort((heights[places], where))
    where, height, which = where[order], heights[places[order]], which[order]
    equal = (where[1:] == where[:-1]) & (height[1:] == height[:-1]) & (which[1:] != which[:-1])
    tied: Int32Array = np.unique(np.concatenate([where[1:][equal], np.intersect1d(unordered, several)]))
    return tied


def _flooded(ground: Ground, group: Int32Array) -> Iterator[tuple[Part, BoolArray, Int32Array]]:
    """For each region of a group its box, where in it the region lies, and the markers that pixels there fall to.

    The regions stand side by side on one canvas, for one call of the watershed: most of a call's time is its beginning.
    """
    parts = [_slices(box) for box in ground.regions.boxes[group]]
    heres = [ground.regions.numbers[part] == region for part, region in zip(parts, group, strict=True)]
    places, shape = _shelves([here.shape for here in heres])
    heights = np.zeros(shape, ground.heights.dtype)
    markers, mask = np.zeros(shape, np.int32), np.zeros(shape, np.bool_)
    for part, here, place in zip(parts, heres, places, strict=True):
        heights[place], markers[place] = ground.heights[part], ground.markers[part]
        np.logical_and(here, ground.rim[part], out=mask[place])
    if mask.any():
        grown = watershed(heights, markers=markers, mask=mask)  # type: ignore[no-untyped-call]
        np.copyto(markers, grown, where=mask)
    for part, here, place in zip(parts, heres, places, strict=True):
        yield part, here, markers[place]


def _shelves(shapes: list[tuple[int, ...]]) -> tuple[list[Part], tuple[int, int]]:
    """Where boxes of these shapes (height, width) stand on a canvas, a pixel apart, and the canvas' shape.

    They stand in rows, the highest first, on a canvas about as wide as high.
    """
    across = max([int(sum(height * width for height, width in shapes) ** 0.5), *(width for _, width in shapes)])
    places: list[Part] = [(slice(0), slice(0))] * len(shapes)
    top = left = bottom = 0
    for i in sorted(range(len(shapes)), key=lambda i: -shapes[i][0]):
        height, width = shapes[i]
        if left + width > across:
            top, left = bottom, 0
        places[i] = (slice(top, top + height), slice(left, left + width))
        left, bottom = left + width + 1, max(bottom, top + height + 1)
    return places, (bottom, across)

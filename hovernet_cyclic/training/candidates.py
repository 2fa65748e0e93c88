"""Nucleus candidates: the regions of a score map whose outline is convex and lies on a strong edge.

One threshold for an image takes dark cytoplasm in at one place and leaves pale nuclei out at another. Here each
nucleus finds its own: the map is cut at many levels, the regions of all levels form a tree (a region holds those of
the levels above it), every region is judged as an outline, and the best set of regions that do not overlap is chosen
from the tree (the idea of extremal regions: Matas et al., BMVC 2002; chosen by dynamic programming: Arteta et al.,
MICCAI 2012). Star-convex outlines stand beside them (see star_outlines.py), for what is no region at any level.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np
from scipy import ndimage

from hovernet_cyclic.core.settings import CandidateSettings
from hovernet_cyclic.core.types import Float32Array, Int32Array, UInt8Array
from hovernet_cyclic.training.star_outlines import Star, star_outlines

SAME_NUCLEUS = 0.6  # share of its area that a nucleus keeps while its outline moves inwards
STAR_SHARE = 0.9  # of its edge that counts of a star, which chose where to lie (.8 to 1 differ little)
LEAST_EVIDENCE = -80.0  # a logit: nothing below is less likely to a float32
SAME_OUTLINE = 0.75  # intersection over union from which two regions show one nucleus, and differ in its outline alone


@dataclass
class Candidate:
    """A region that may be a nucleus.

    contour: int32 (K, 1, 2) x, y in tile px, every pixel of the outline. area: px, holes filled. solidity: area over
    that of its convex hull. edge: mean gradient of the score map along the outline, over the 90th percentile of the
    map's gradient; of a star (see star_outlines.py) a share of it, or of its fall. evidence: mean logit of the front
    end inside. quality: what trust goes by. worth: what it brings to a set of regions.
    """

    contour: Int32Array
    area: float
    solidity: float
    edge: float
    evidence: float
    quality: float
    worth: float


@dataclass
class _Region:
    """A node of the tree: its parent at the level below, its children above, and what it is worth."""

    parent: int
    children: list[int] = field(default_factory=list)
    candidate: Candidate | None = None
    worth: float = 0.0


class Second(NamedTuple):
    """What is known once a network has learnt.

    stain: float32 (H, W), on whose edges alone outlines are judged, for a network's own lie a little outside.
    proposed: int32 (H, W), its instances, which part what no level of a map does; a region of the map replaces those
    that it is worth more than.
    """

    stain: Float32Array
    proposed: Int32Array


def find_candidates(
    score: Float32Array,
    evidence: Float32Array,
    mpp: float,
    settings: CandidateSettings,
    second: Second | None = None,
) -> list[Candidate]:
    """The best set of regions of `score`, and of stars on its edges or the stain's, that do not overlap, worst first.

    score: float32 (H, W), higher where a nucleus is likelier, in any unit (stain density or probability).
    evidence: float32 (H, W), the front end's logits. mpp: um/px of both. second: of a later cycle.
    """
    blur = settings.blur_um / mpp
    smooth = np.asarray(cv2.GaussianBlur(score, (0, 0), blur), np.float32)
    edges = smooth if second is None else np.asarray(cv2.GaussianBlur(second.stain, (0, 0), blur), np.float32)
    judge = _Judge(edges, evidence, mpp, settings)
    chosen = _best_regions(smooth, judge, settings)
    if settings.seed_radii_um:
        stars = star_outlines(edges, judge.slopes, mpp, settings.seed_radii_um)
        chosen = _exchange(chosen, judge.measure_stars(stars), smooth.shape)
    if second is not None:
        chosen = _exchange(judge.measure_all(second.proposed), chosen, smooth.shape)
        chosen = outlined_by(_best_regions(edges, judge, settings), chosen, smooth.shape)
    return sorted(chosen, key=lambda candidate: candidate.quality)


def _best_regions(smooth: Float32Array, judge: _Judge, settings: CandidateSettings) -> list[Candidate]:
    """The best regions of a blurred map, each with the sharpest of its outlines, none within another."""
    low, high = np.quantile(smooth, [settings.lowest_quantile, settings.highest_quantile])
    regions = _grow_tree(smooth, np.linspace(low, high, settings.levels), judge)
    return _without_nested([_sharpest(regions, i) for i in _choose(regions)], smooth.shape)


class _Judge:
    """Measures regions of one map."""

    def __init__(self, smooth: Float32Array, evidence: Float32Array, mpp: float, settings: CandidateSettings) -> None:
        self.slopes = slopes(smooth)
        self._gradient = np.asarray(cv2.magnitude(*self.slopes), np.float32)
        self._gradient_scale = max(float(np.percentile(self._gradient, 90)), 1e-6)
        self._evidence = evidence
        self._settings = settings
        self._full_area = settings.full_area_um2 / mpp**2
        self.smallest = settings.min_area_um2 / mpp**2
        self.largest = settings.max_area_um2 / mpp**2

    def measure(self, mask: UInt8Array, top: int, left: int) -> Candidate | None:
        """uint8 (h, w) mask of one region whose box begins at (top, left) -> Candidate, None where size forbids."""
        contour, area, solidity = outline(mask)
        if not self.smallest <= area <= self.largest:
            return None
        columns, rows = contour[:, 0, 0] + left, contour[:, 0, 1] + top
        edge = float(self._gradient[rows, columns].mean()) / self._gradient_scale
        inside = self._evidence[top : top + mask.shape[0], left : left + mask.shape[1]][mask > 0]
        return self._judged(contour + np.array([left, top]), area, solidity, edge, float(inside.mean()))

    def measure_all(self, inst_map: Int32Array) -> list[Candidate]:
        """int32 (H, W), 0 background -> a candidate for each instance whose size allows it."""
        found = [self.measure(mask, top, left) for mask, top, left in instance_masks(inst_map)]
        return [candidate for candidate in found if candidate is not None]

    def measure_stars(self, stars: list[Star]) -> list[Candidate]:
        """A candidate for each whose size allows it, none within another."""
        found = [self._measure_star(star) for star in stars]
        return _without_nested([one for one in found if one is not None and one.worth > 0], self._gradient.shape)

    def _measure_star(self, star: Star) -> Candidate | None:
        left, top = (int(value) for value in star.corners.min(axis=0))
        width, height = (int(value) for value in star.corners.max(axis=0) + 1 - (left, top))
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [star.corners - (left, top)], 1)
        found = self.measure(mask, top, left)
        if found is None:
            return None
        edge = STAR_SHARE * min(found.edge, star.fall / self._gradient_scale)
        return self._judged(found.contour, found.area, found.solidity, max(0.0, edge), found.evidence)

    def _judged(self, contour: Int32Array, area: float, solidity: float, edge: float, evidence: float) -> Candidate:
        convexity = convexity_of(solidity, self._settings)
        size = min(1.0, area / self._full_area)
        believed = 1 / (1 + np.exp(-max(evidence, LEAST_EVIDENCE)))
        quality = edge * convexity * size * believed
        worth = edge * convexity**0.5 * believed**0.5 * area
        return Candidate(contour.astype(np.int32), area, solidity, edge, evidence, float(quality), float(worth))


def instance_masks(inst_map: Int32Array) -> Iterator[tuple[UInt8Array, int, int]]:
    """Of each instance of int32 (H, W): its mask uint8 (h, w) within its box, and the box's top and left, px."""
    for inst_id, box in enumerate(ndimage.find_objects(inst_map), 1):
        if box is not None:
            yield (inst_map[box] == inst_id).astype(np.uint8), box[0].start, box[1].start


def outline(mask: UInt8Array) -> tuple[Int32Array, float, float]:
    """Of a mask uint8 (h, w) of one region: contour int32 (K, 1, 2) x, y, area in px with holes filled, and solidity.

    Solidity is the area over that of the convex hull. Of a region in pieces it is the largest piece's.
    """
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = np.asarray(max(contours, key=cv2.contourArea), np.int32)
    beside = len(contour) / 2  # the polygon runs through pixel centres
    area = cv2.contourArea(contour) + beside
    return contour, area, area / (cv2.contourArea(cv2.convexHull(contour)) + beside)


def convexity_of(solidity: float, settings: CandidateSettings) -> float:
    """In [0, 1]: 0 up to the lowest solidity of a nucleus, 1 where it is its own convex hull."""
    return max(0.0, (solidity - settings.lowest_solidity) / (1 - settings.lowest_solidity))


def slopes(score: Float32Array) -> tuple[Float32Array, Float32Array]:
    """float32 (H, W) -> its slopes along x and along y at a scale of about 1 px, float32 (H, W) each, a px."""
    smooth = cv2.GaussianBlur(score, (0, 0), 1.0)
    across = cv2.Sobel(smooth, cv2.CV_32F, 1, 0, scale=0.125)
    down = cv2.Sobel(smooth, cv2.CV_32F, 0, 1, scale=0.125)
    return np.asarray(across, np.float32), np.asarray(down, np.float32)


def _grow_tree(smooth: Float32Array, levels: Float32Array, judge: _Judge) -> list[_Region]:
    """Regions of all levels, lowest level first, so that a parent always stands before its children."""
    regions: list[_Region] = []
    below: tuple[Int32Array, Int32Array] | None = None
    for level in levels:
        count, labels, stats, _ = cv2.connectedComponentsWithStats((smooth > level).astype(np.uint8), connectivity=4)
        region_of = np.full(count, -1, np.int32)
        for label in np.nonzero(stats[:, cv2.CC_STAT_AREA] >= judge.smallest)[0]:
            if label == 0:
                continue
            region_of[label] = len(regions)
            regions.append(_region(labels, int(label), stats[label], below, judge))
            parent = regions[-1].parent
            if parent >= 0:
                regions[parent].children.append(len(regions) - 1)
        below = labels, region_of
    return regions


def _region(
    labels: Int32Array, label: int, stats: Int32Array, below: tuple[Int32Array, Int32Array] | None, judge: _Judge
) -> _Region:
    left, top, width, height, area = (int(value) for value in stats)
    mask = (labels[top : top + height, left : left + width] == label).astype(np.uint8)
    parent = -1
    if below is not None:
        column = left + int(np.argmax(mask[0]))
        parent = int(below[1][below[0][top, column]])
    too_large = area > 1.3 * judge.largest  # spares the outline of the background-sized regions of the lowest levels
    candidate = None if too_large else judge.measure(mask, top, left)
    return _Region(parent, [], candidate, candidate.worth if candidate else 0.0)


def _choose(regions: list[_Region]) -> list[int]:
    """From the leaves down: a region is taken where it is worth more than the best that its children offer."""
    best = np.zeros(len(regions))
    taken = np.zeros(len(regions), bool)
    for i in range(len(regions) - 1, -1, -1):
        offered = sum(best[child] for child in regions[i].children)
        taken[i] = regions[i].worth > offered
        best[i] = max(regions[i].worth, offered)
    chosen: list[int] = []
    open_regions = [i for i, region in enumerate(regions) if region.parent < 0]
    while open_regions:
        i = open_regions.pop()
        if taken[i]:
            chosen.append(i)
        else:
            open_regions += regions[i].children
    return chosen


def _sharpest(regions: list[_Region], chosen: int) -> Candidate:
    """Of a chosen region and the same nucleus at the levels above, the outline on the strongest edge.

    Worth counts area, so that a whole nucleus beats its parts; that also favours outlines outside of the edge.
    """
    best, level = regions[chosen].candidate, chosen
    assert best is not None, "a region without a candidate is worth nothing"
    smallest = SAME_NUCLEUS * best.area
    while regions[level].children:
        level = max(regions[level].children, key=lambda child: _area(regions[child]))
        here = regions[level].candidate
        if here is None or here.area < smallest:
            break
        best = max(best, here, key=_sharpness)
    return best


def _area(region: _Region) -> float:
    return region.candidate.area if region.candidate is not None else 0.0


def _sharpness(candidate: Candidate) -> float:
    return candidate.edge * candidate.solidity**2 if candidate.worth > 0 else 0.0


def _without_nested(chosen: list[Candidate], shape: tuple[int, ...]) -> list[Candidate]:
    """Candidates count with their holes filled, and a region can lie in a hole of another: the worthier one stays."""
    taken = np.zeros(shape, np.uint8)
    kept = []
    for candidate in _worthiest(chosen):
        window, filled = _filled(candidate)
        if not np.any(taken[window] & filled):
            taken[window] |= filled
            kept.append(candidate)
    return kept


def _filled(candidate: Candidate) -> tuple[tuple[slice, slice], UInt8Array]:
    """The box (rows, columns) of a candidate and its mask there, holes filled."""
    left, top, width, height = cv2.boundingRect(candidate.contour)
    filled = np.zeros((height, width), np.uint8)
    cv2.drawContours(filled, [candidate.contour - (left, top)], -1, 1, cv2.FILLED)
    return (slice(top, top + height), slice(left, left + width)), filled


def _exchange(first: list[Candidate], second: list[Candidate], shape: tuple[int, ...]) -> list[Candidate]:
    """`first`, in which each of `second` has replaced what it overlaps where it is worth more than all of that."""
    owner = np.full(shape, -1, np.int32)
    kept: dict[int, Candidate] = {}
    for number, candidate in enumerate(_worthiest(first) + _worthiest(second)):
        window, filled = _filled(candidate)
        rivals = [int(i) for i in np.unique(owner[window][filled > 0]) if i >= 0]
        if candidate.worth <= sum(kept[i].worth for i in rivals):
            continue
        for i in rivals:
            theirs, _ = _filled(kept.pop(i))
            owner[theirs][owner[theirs] == i] = -1
        owner[window][filled > 0] = number
        kept[number] = candidate
    return list(kept.values())


def outlined_by(first: list[Candidate], chosen: list[Candidate], shape: tuple[int, ...]) -> list[Candidate]:
    """`chosen`, with the outline of `first` where that shows the same nucleus, and smaller.

    A network's outlines lie a little outside of those it was taught; taught in turn, they would grow from cycle to
    cycle. first: regions that do not overlap, of the stain alone.
    """
    owner = np.full(shape, -1, np.int32)
    areas = []
    for number, candidate in enumerate(first):
        window, filled = _filled(candidate)
        owner[window][filled > 0] = number
        areas.append(np.count_nonzero(filled))
    return [_outlined(candidate, first, owner, areas) for candidate in chosen]


def _outlined(candidate: Candidate, first: list[Candidate], owner: Int32Array, areas: list[int]) -> Candidate:
    window, filled = _filled(candidate)
    ids, shared = np.unique(owner[window][filled > 0], return_counts=True)
    own = np.count_nonzero(filled)
    for i, common in zip(ids.tolist(), shared.tolist(), strict=True):
        if i >= 0 and areas[i] < own and common > SAME_OUTLINE * (own + areas[i] - common):
            same = first[i]
            return dataclasses.replace(candidate, contour=same.contour, area=same.area, solidity=same.solidity)
    return candidate


def _worthiest(candidates: list[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda candidate: -candidate.worth)

"""Activation maps to pseudo instance masks: what to teach, what to call background, and what to leave unsaid.

The front end says where nuclei are, haematoxylin says where their edges are. A candidate is trusted by its rank among
all candidates of the cycle, so that no threshold depends on a drawn mask or on one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from dataloader.stain import haematoxylin
from hovernet_cyclic.core.label_maps import relabel
from hovernet_cyclic.core.settings import PseudoMaskSettings, TrainRecipe
from hovernet_cyclic.core.types import (
    ActivationMap,
    BoolArray,
    Float32Array,
    Float64Array,
    ImageTile,
    Int32Array,
    PseudoMask,
    RawMaps,
    UInt8Array,
)
from hovernet_cyclic.training.candidates import Candidate, Second, find_candidates
from models.hovernet.post_proc import segment
from models.ranks import ALONE, Ranks


@dataclass(frozen=True)
class TileCandidates:
    """Candidates of one tile, and the pixels about which nothing should be said unless a trusted nucleus settles it.

    doubtful: bool (H, W).
    """

    tile_id: str
    candidates: list[Candidate]
    doubtful: BoolArray


def tile_candidates(
    tile: ImageTile,
    activation: ActivationMap,
    teacher: RawMaps | None,
    recipe: TrainRecipe,
) -> TileCandidates:
    """Cut one tile into candidates. teacher: its maps of the tile, or None before there is a teacher."""
    settings = recipe.pseudo_masks
    stain = haematoxylin(tile.image)
    evidence = activation.evidence[0]
    score = stain / max(float(stain.std()), 1e-3)
    if teacher is not None:
        teacher_logit = logit(teacher.np_prob)
        both = score + settings.teacher_weight * teacher_logit
        # the teacher was taught to end inside of the edge on which candidates are judged
        proposed = outset(segment(teacher, smallest=recipe.smallest_area), settings.inset_um / tile.mpp)
        found = find_candidates(both, teacher_logit, tile.mpp, recipe.candidates, Second(score, proposed))
        # what either of the two holds possible is left out: a teacher that is blind to pale nuclei must not bury them
        evidence = np.maximum(evidence, teacher_logit)
    else:
        found = find_candidates(score, evidence, tile.mpp, recipe.candidates)
    return TileCandidates(tile.tile_id, found, _doubtful(stain, evidence, tile.mpp, settings))


def logit(probability: Float32Array) -> Float32Array:
    """float32 in [0, 1] -> its logit, held within that of .01 and .99."""
    held = np.clip(probability, 0.01, 0.99)
    return np.asarray(np.log(held / (1 - held)), dtype=np.float32)


def _doubtful(stain: Float32Array, evidence: Float32Array, mpp: float, settings: PseudoMaskSettings) -> BoolArray:
    """Dark and evident pixels, and the pale inside of a rim of them: a vesicular nucleus is dark at its edge alone."""
    stain, evidence = (_closed(values, settings.close_um / mpp) for values in (stain, evidence))
    smooth = np.asarray(cv2.GaussianBlur(stain, (0, 0), 0.375 / mpp), np.float32)
    dark = smooth > np.quantile(smooth, settings.dark_quantile)
    return np.asarray(dark & (evidence > settings.faint_evidence), dtype=np.bool_)


def _closed(values: Float32Array, radius: float) -> Float32Array:
    return np.asarray(cv2.morphologyEx(values, cv2.MORPH_CLOSE, _disc(radius)), np.float32)


def _disc(radius: float) -> UInt8Array:
    size = 2 * round(radius) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size)), np.uint8)


def make_pseudo_masks(
    tiles: list[TileCandidates],
    cycle: int,
    mpp: float,
    trust_above: float,
    settings: PseudoMaskSettings,
    ranks: Ranks = ALONE,
) -> list[PseudoMask]:
    """Trust the best candidates over all tiles of a cycle, dismiss the worst and leave the rest out.

    tiles: this process's own, where `ranks` are several; what is best is judged over those of all. trust_above: rank in
    [0, 1] from which a candidate is taught.
    """
    qualities = [[candidate.quality for candidate in tile.candidates] for tile in tiles]
    among = np.sort([value for of_tile in ranks.gather(qualities) for value in of_tile])
    standing = [standings(of_tile, among, settings.within_tile) for of_tile in qualities]
    everywhere = np.sort([value for of_tile in ranks.gather(standing) for value in of_tile])
    return [
        _pseudo_mask(tile, rank_among(everywhere, of_tile).tolist(), cycle, mpp, trust_above, settings)
        for tile, of_tile in zip(tiles, standing, strict=True)
    ]


def rank_among(values: Float64Array, these: Float64Array) -> Float64Array:
    """Of each of `these` the share of `values`, sorted, that is below it, in [0, 1)."""
    return np.searchsorted(values, these) / max(1, len(values))


def standings(qualities: Sequence[float], among: Float64Array, within_tile: float) -> Float64Array:
    """What the candidates of a tile are ranked by: the mean of their ranks among all and in their tile.

    among: qualities of all tiles, sorted. within_tile: weight of the second in [0, 1]. A candidate that is alone in its
    tile stands in the middle of it: that it is the best there says as little as that it is the worst.
    """
    own = np.asarray(qualities, np.float64)
    in_tile = rank_among(np.sort(own), own) + 0.5 / max(1, len(own))
    return (1 - within_tile) * rank_among(among, own) + within_tile * in_tile


def surest(mask: PseudoMask, above: float) -> list[int]:
    """Ids of the nuclei whose confidence (rank in [0, 1]) is at least `above`."""
    return [inst_id for inst_id, rank in enumerate(mask.confidence.tolist(), 1) if rank >= above]


def _pseudo_mask(
    tile: TileCandidates,
    confidences: list[float],
    cycle: int,
    mpp: float,
    trust_above: float,
    settings: PseudoMaskSettings,
) -> PseudoMask:
    shape = tile.doubtful.shape
    inst_map, unsure = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
    confidence: list[float] = []
    for candidate, rank in zip(tile.candidates, confidences, strict=True):
        if rank >= trust_above:
            confidence.append(rank)
            cv2.drawContours(inst_map, [candidate.contour], -1, len(confidence), cv2.FILLED)
        elif rank >= settings.dismiss_below:
            cv2.drawContours(unsure, [candidate.contour], -1, 1, cv2.FILLED)
    trusted = _trusted(inst_map > 0, unsure, tile.doubtful, settings.surround_um / mpp)
    inst_map = inset(inst_map, settings.inset_um / mpp)
    left = np.unique(inst_map[inst_map > 0])  # the thinnest are gone
    return PseudoMask(tile.tile_id, cycle, relabel(inst_map), trusted, np.asarray(confidence, np.float32)[left - 1])


def inset(inst_map: Int32Array, radius: float) -> Int32Array:
    """int32 (H, W), 0 background -> the same less each pixel within `radius` px of another instance or of none.

    The border of the map is no edge.
    """
    ids = inst_map.astype(np.float32)  # OpenCV filters no int32; up to 2^24 float32 holds every id
    kept = (cv2.erode(ids, _disc(radius)) == ids) & (cv2.dilate(ids, _disc(radius)) == ids)
    return np.where(kept, inst_map, 0).astype(np.int32)


def outset(inst_map: Int32Array, radius: float) -> Int32Array:
    """int32 (H, W), 0 background -> the same with each instance grown by `radius` px over background alone."""
    grown = cv2.dilate(inst_map.astype(np.float32), _disc(radius)).astype(np.int32)
    return np.where(inst_map > 0, inst_map, grown).astype(np.int32)


def _trusted(taught: BoolArray, unsure: UInt8Array, doubtful: BoolArray, surround: float) -> BoolArray:
    """Taught pixels, their close surround, and all that is neither doubtful nor near an unsure candidate."""
    near_unsure = cv2.dilate(unsure, np.ones((5, 5), np.uint8)) > 0
    surrounding = (cv2.dilate(taught.astype(np.uint8), _disc(surround)) > 0) & (unsure == 0)
    return np.asarray(taught | surrounding | ~(near_unsure | doubtful), dtype=np.bool_)

"""Activation maps to pseudo instance masks: what to teach, what to call background, and what to leave unsaid.

The front end says where nuclei are, haematoxylin says where their edges are. A candidate is trusted by its rank among
all candidates of the cycle, so that no threshold depends on a drawn mask or on one image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dataloader.stain import haematoxylin
from hovernet_cyclic.core.settings import CandidateSettings, PseudoMaskSettings
from hovernet_cyclic.core.types import ActivationMap, BoolArray, Float32Array, ImageTile, PseudoMask, UInt8Array
from hovernet_cyclic.training.candidates import Candidate, find_candidates


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
    teacher_prob: Float32Array | None,
    settings: PseudoMaskSettings,
    shapes: CandidateSettings,
) -> TileCandidates:
    """Cut one tile into candidates. teacher_prob: float32 (H, W) in [0, 1], or None before there is a teacher."""
    stain = haematoxylin(tile.image)
    evidence = activation.evidence[0]
    score = stain / max(float(stain.std()), 1e-3)
    if teacher_prob is not None:
        teacher_logit = logit(teacher_prob)
        score = score + settings.teacher_weight * teacher_logit
        found = find_candidates(score, teacher_logit, tile.mpp, shapes)
        # what either of the two holds possible is left out: a teacher that is blind to pale nuclei must not bury them
        evidence = np.maximum(evidence, teacher_logit)
    else:
        found = find_candidates(score, evidence, tile.mpp, shapes)
    return TileCandidates(tile.tile_id, found, _doubtful(stain, evidence, tile.mpp, settings))


def logit(probability: Float32Array) -> Float32Array:
    """float32 in [0, 1] -> its logit, held within that of .01 and .99."""
    held = np.clip(probability, 0.01, 0.99)
    return np.asarray(np.log(held / (1 - held)), dtype=np.float32)


def _doubtful(stain: Float32Array, evidence: Float32Array, mpp: float, settings: PseudoMaskSettings) -> BoolArray:
    smooth = np.asarray(cv2.GaussianBlur(stain, (0, 0), 0.375 / mpp), np.float32)
    dark = smooth > np.quantile(smooth, settings.dark_quantile)
    return np.asarray(dark & (evidence > settings.faint_evidence), dtype=np.bool_)


def make_pseudo_masks(
    tiles: list[TileCandidates], cycle: int, mpp: float, trust_above: float, settings: PseudoMaskSettings
) -> list[PseudoMask]:
    """Trust the best candidates over all tiles of a cycle, dismiss the worst and leave the rest out.

    trust_above: rank in [0, 1] from which a candidate is taught.
    """
    quality = np.sort([candidate.quality for tile in tiles for candidate in tile.candidates])
    return [_pseudo_mask(tile, quality, cycle, mpp, trust_above, settings) for tile in tiles]


def _pseudo_mask(
    tile: TileCandidates,
    quality: Float32Array,
    cycle: int,
    mpp: float,
    trust_above: float,
    settings: PseudoMaskSettings,
) -> PseudoMask:
    shape = tile.doubtful.shape
    inst_map, unsure = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
    confidence: list[float] = []
    for candidate in tile.candidates:
        rank = float(np.searchsorted(quality, candidate.quality)) / max(1, len(quality))
        if rank >= trust_above:
            confidence.append(rank)
            cv2.drawContours(inst_map, [candidate.contour], -1, len(confidence), cv2.FILLED)
        elif rank >= settings.dismiss_below:
            cv2.drawContours(unsure, [candidate.contour], -1, 1, cv2.FILLED)
    trusted = _trusted(inst_map > 0, unsure, tile.doubtful, settings.surround_um / mpp)
    return PseudoMask(tile.tile_id, cycle, inst_map, trusted, np.asarray(confidence, np.float32))


def _trusted(taught: BoolArray, unsure: UInt8Array, doubtful: BoolArray, surround: float) -> BoolArray:
    """Taught pixels, their close surround, and all that is neither doubtful nor near an unsure candidate."""
    near_unsure = cv2.dilate(unsure, np.ones((5, 5), np.uint8)) > 0
    size = 2 * round(surround) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    surrounding = (cv2.dilate(taught.astype(np.uint8), kernel) > 0) & (unsure == 0)
    return np.asarray(taught | surrounding | ~(near_unsure | doubtful), dtype=np.bool_)

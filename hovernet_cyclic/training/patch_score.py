"""A score of a segmentation network that needs no masks: nuclei where people saw some, and none where they saw none.

On image-level patches that no stage was trained on, nuclei are counted, each by how convex it is: what is shattered or
run together counts little. The surplus of positive patches over negative ones decides whether a cycle is kept. (Whether
a positive patch holds any nucleus at all is no measure: every network that has learnt something finds one.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import Int32Array, Segmenter, TileSource
from hovernet_cyclic.training.candidates import convexity_of, instance_masks, outline
from models.hovernet.post_proc import segment
from models.ranks import ALONE, Ranks

MOST_PATCHES = 300  # of each label: a share's standard error is below .03


class PatchScore(NamedTuple):
    """recall: share of positive patches with a nucleus. specificity: share of negative patches without.

    found, false: convex nuclei per mm2 of positive and of negative patches, see the module. Each is nan where there is
    no such patch.
    """

    recall: float
    specificity: float
    found: float
    false: float

    @classmethod
    def unknown(cls) -> PatchScore:
        """Of a network that was not asked."""
        return cls(*[float("nan")] * 4)

    @property
    def surplus(self) -> float:
        """found - false, per mm2; nan where one is not known: the other alone is best for all nuclei or for none."""
        return self.found - self.false


class _Patch(NamedTuple):
    """What was found in one patch: nuclei, the sum of their convexities, and the patch's area in mm2."""

    nuclei: int
    convex: float
    area: float


def score_on_patches(
    segmenter: Segmenter, source: TileSource, indices: Sequence[int], recipe: TrainRecipe, ranks: Ranks = ALONE
) -> PatchScore:
    """Score on at most MOST_PATCHES patches of each label, the same ones for the same seed, dealt out to `ranks`."""
    chosen = (_chosen(source, indices, recipe.seed, label) for label in (1.0, 0.0))
    positive, negative = (ranks.gather(_patches(segmenter, source, ranks.own(of_label), recipe)) for of_label in chosen)
    return PatchScore(
        _mean(patch.nuclei > 0 for patch in positive),
        _mean(patch.nuclei == 0 for patch in negative),
        _density(positive),
        _density(negative),
    )


def _chosen(source: TileSource, indices: Sequence[int], seed: int, label: float) -> list[int]:
    of_label = [i for i in indices if source.patch_labels[i, 0] == label]
    return [of_label[i] for i in np.random.default_rng(seed).permutation(len(of_label))[:MOST_PATCHES]]


def _patches(segmenter: Segmenter, source: TileSource, chosen: Sequence[int], recipe: TrainRecipe) -> list[_Patch]:
    found = []
    for i in chosen:
        raw = segmenter.raw_maps(source.read_patch(i).image)
        inst_map = segment(raw, recipe.net.post_proc, recipe.smallest_area)
        area = inst_map.size * (recipe.data.mpp / 1000) ** 2
        found.append(_Patch(int(inst_map.max(initial=0)), _convex(inst_map, recipe), area))
    return found


def _convex(inst_map: Int32Array, recipe: TrainRecipe) -> float:
    """Sum of the convexities of all instances, each in [0, 1]."""
    return sum(convexity_of(outline(mask)[2], recipe.candidates) for mask, _, _ in instance_masks(inst_map))


def _mean(hits: Iterable[bool]) -> float:
    values = list(hits)
    return float(np.mean(values)) if values else float("nan")


def _density(patches: list[_Patch]) -> float:
    return sum(patch.convex for patch in patches) / sum(patch.area for patch in patches) if patches else float("nan")

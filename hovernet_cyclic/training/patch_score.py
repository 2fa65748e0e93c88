"""A score of a segmentation network that needs no masks: does it find a nucleus where people said that there is one?

On image-level patches that no stage was trained on, a positive patch is right when the network segments at least one
nucleus in it, a negative patch when it segments none. The mean of the two shares decides whether a cycle is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import Segmenter, TileSource
from models.hovernet.post_proc import segment

MOST_PATCHES = 300  # of each label: the share's standard error is below .03


class PatchScore(NamedTuple):
    """recall: share of positive patches with a nucleus. specificity: share of negative patches without.

    false_nuclei: nuclei per megapixel of negative patches. All nan where there is no such patch.
    """

    recall: float
    specificity: float
    false_nuclei: float

    @property
    def balanced(self) -> float:
        """Mean of recall and specificity, of the one that is known where the other is not."""
        known = [share for share in (self.recall, self.specificity) if not np.isnan(share)]
        return float(np.mean(known)) if known else float("nan")


def score_on_patches(
    segmenter: Segmenter, source: TileSource, indices: Sequence[int], recipe: TrainRecipe
) -> PatchScore:
    """Score on at most MOST_PATCHES patches of each label, the same ones for the same seed."""
    counts: dict[float, list[int]] = {}
    negative_pixels = 0
    for label in (1.0, 0.0):
        chosen = [i for i in indices if source.patch_labels[i, 0] == label]
        order = np.random.default_rng(recipe.seed).permutation(len(chosen))[:MOST_PATCHES]
        images = [source.read_patch(chosen[i]).image for i in order]
        maps = (segmenter.raw_maps(image) for image in images)
        found = (segment(raw, recipe.net.post_proc, recipe.smallest_area) for raw in maps)
        counts[label] = [int(inst_map.max(initial=0)) for inst_map in found]
        negative_pixels = sum(image.shape[0] * image.shape[1] for image in images)
    hit = np.array(counts[1.0]) > 0
    false = np.array(counts[0.0])
    return PatchScore(
        float(hit.mean()) if len(hit) else float("nan"),
        float((false == 0).mean()) if len(false) else float("nan"),
        float(false.sum() / negative_pixels * 1e6) if len(false) else float("nan"),
    )

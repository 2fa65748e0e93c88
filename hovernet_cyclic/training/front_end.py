"""The front end: a classifier of patches whose evidence is read at high resolution.

A positive patch holds a nucleus somewhere (a bag of pixels, some of which are nucleus: multiple-instance learning); a
negative patch holds none anywhere, so each of its pixels is background. Haematoxylin adds the little that a label of
the whole patch cannot say: its palest pixels are not nuclei even where the patch is positive.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F

from dataloader.classifier_loader import PatchBatch, PatchSampler, fit_to_shape
from hovernet_cyclic.core.settings import FrontEndSettings
from hovernet_cyclic.core.types import ActivationMap, ImageTile, TileSource
from hovernet_cyclic.training.loop import Lesson, teach
from hovernet_cyclic.training.run_dir import Stage
from models.classifier.cam import activation_map
from models.classifier.net_desc import Classifier, ClassifierOutput
from models.devices import Device
from models.ranks import ALONE, Ranks

HARD_NEGATIVES = 0.05  # the share of a negative patch's pixels that is asked again, the most evident ones
SURE_POSITIVES = 0.03  # the share of a positive patch's pixels that must be evident together


def train_front_end(
    classifier: Classifier,
    sampler: PatchSampler,
    steps: range,
    settings: FrontEndSettings,
    stage: Stage,
) -> None:
    """Train `classifier` in place for `steps` (numbers of the whole run: each draws its own batch)."""
    lesson = Lesson(
        curves="front_end",
        network=classifier,
        batch=partial(sampler.batch, rows=stage.ranks.own(range(settings.batch_size))),
        loss=lambda network, batch: front_end_loss(network, batch, settings, stage.device, stage.ranks),
        follow=lambda: None,
        settings=settings,
    )
    teach(lesson, steps, stage)


def front_end_loss(
    classifier: torch.nn.Module, batch: PatchBatch, settings: FrontEndSettings, device: Device, ranks: Ranks = ALONE
) -> dict[str, torch.Tensor]:
    """The terms of a Classifier, or of what stands for it in several processes, see `classifier_terms`."""
    with device.autocast():
        output: ClassifierOutput = classifier(device.images(batch.images))
    return classifier_terms(output, batch, settings, device, ranks)


def classifier_terms(
    output: ClassifierOutput, batch: PatchBatch, settings: FrontEndSettings, device: Device, ranks: Ranks = ALONE
) -> dict[str, torch.Tensor]:
    """Scalars: 'patch' (cross-entropy of the pooled logits), and per evidence head 'negative', 'positive', 'pale'.

    They are those of the whole batch, of which each of `ranks` has its rows, perhaps of one label alone.
    """
    labels = device.tensor(batch.labels)
    stain = device.tensor(batch.stain)
    entropy = F.binary_cross_entropy_with_logits(output.patch_logits.float(), labels, reduction="none")
    parts = {"patch": ranks.mean(entropy)}
    positive = labels[:, 0] > 0
    for evidence in output.evidence:
        logits = evidence[:, 0].float().flatten(1)
        shrunk = F.interpolate(stain[:, None], size=evidence.shape[-2:], mode="area")[:, 0].flatten(1)
        terms = _evidence_terms(logits, shrunk, positive, settings, ranks)
        parts = {**parts, **{key: parts.get(key, torch.zeros(())) + value for key, value in terms.items()}}
    return parts


def _evidence_terms(
    logits: torch.Tensor, stain: torch.Tensor, positive: torch.Tensor, settings: FrontEndSettings, ranks: Ranks
) -> dict[str, torch.Tensor]:
    """logits, stain: float32 (B, n) of one head's pixels; positive: bool (B,)."""
    pixels = logits.shape[1]
    inside, outside = logits[positive], logits[~positive]
    hard = ranks.mean(F.softplus(_largest(outside, HARD_NEGATIVES)))
    evident = ranks.mean(F.softplus(-_largest(inside, settings.pool_fraction)))
    sure = ranks.mean(F.softplus(-_largest(inside, SURE_POSITIVES).mean(1)))
    palest = stain[positive].argsort(1)[:, : int(pixels * settings.pale_fraction)]
    pale = ranks.mean(F.softplus(inside.gather(1, palest)))  # 0 where the recipe asks for none
    return {
        "negative": 0.5 * (ranks.mean(F.softplus(outside)) + hard),
        "positive": 0.5 * (evident + sure),
        "pale": settings.pale_weight * pale,
    }


def _largest(values: torch.Tensor, share: float) -> torch.Tensor:
    return values.topk(max(1, int(values.shape[1] * share)), dim=1).values


@torch.no_grad()
def patch_accuracy(
    classifier: Classifier,
    source: TileSource,
    indices: Sequence[int],
    device: Device,
    ranks: Ranks = ALONE,
    batch_size: int = 32,
) -> float:
    """Balanced accuracy in [0, 1] of the patch classifier on `indices`: the mean of recall and specificity.

    nan where one of the labels is missing. Each of `ranks` classifies some of the batches.
    """
    begins = range(0, len(indices), batch_size)
    batches = [_hits(classifier, source, indices[b : b + batch_size], device) for b in ranks.own(begins)]
    right: dict[float, list[bool]] = {0.0: [], 1.0: []}
    for label, hit in (pair for batch in ranks.gather(batches) for pair in batch):
        right[label].append(hit)
    return float(np.mean([np.mean(hits) if hits else np.nan for hits in right.values()]))


def _hits(
    classifier: Classifier, source: TileSource, chosen: Sequence[int], device: Device
) -> list[tuple[float, bool]]:
    """(label, whether the classifier tells it) of each patch."""
    rng = np.random.default_rng(chosen[0])
    shape = _padded(max(source.patch_shapes[i] for i in chosen))
    images = np.stack([fit_to_shape(source.read_patch(i).image, shape, rng) for i in chosen])
    with device.autocast():
        logits = classifier(device.images(images)).patch_logits[:, 0].float()
    labels = [float(source.patch_labels[i, 0]) for i in chosen]
    return [(label, (logit > 0) == (label > 0)) for label, logit in zip(labels, logits.tolist(), strict=True)]


def _padded(shape: tuple[int, int]) -> tuple[int, int]:
    return -(-shape[0] // 8) * 8, -(-shape[1] // 8) * 8


def read_activation(classifier: Classifier, tile: ImageTile, method: str, device: Device) -> ActivationMap:
    """The activation map of one tile by the CAM method of the recipe, in logits, at the tile's resolution."""
    with device.autocast():
        return activation_map(classifier, tile, method, device.torch_device)

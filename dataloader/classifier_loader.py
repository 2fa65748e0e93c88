"""Batches of image-level patches for the classifier: balanced between labels and between images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dataloader.augs import augment_patch, sample_rng
from dataloader.stain import haematoxylin
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import Float32Array, TileSource, UInt8Array

STRIDE = 8  # patches are padded to this multiple, the coarsest stride of every encoder


class PatchBatch(NamedTuple):
    """images: uint8 (B, h, w, 3) RGB. labels: float32 (B, C). stain: float32 (B, h, w) haematoxylin OD."""

    images: UInt8Array
    labels: Float32Array
    stain: Float32Array


def label_name(source: TileSource, label: float) -> str:
    """What a person calls a patch's label: the image-level class, or that there is none of it."""
    return source.class_names[0] if label else f"no {source.class_names[0]}"


def split_by_group(source: TileSource, valid_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """(train, held-out) patch indices. Whole groups are held out, so that no image lends patches to both sides.

    Raises DatasetError where one of the labels would be left without a patch to train on.
    """
    groups = sorted(set(source.patch_groups))
    order = np.random.default_rng(seed).permutation(len(groups))
    held = {groups[i] for i in order[: round(len(groups) * valid_fraction)]}
    train = [i for i, group in enumerate(source.patch_groups) if group not in held]
    valid = [i for i, group in enumerate(source.patch_groups) if group in held]
    for label, name in ((1.0, "positive"), (0.0, "negative")):
        if not np.any(source.patch_labels[train, 0] == label):
            raise DatasetError(f"No {name} patch is left to train on: add {name} patches from more images.")
    return train, valid


class PatchSampler:
    """Draws batches, half of them positive, each from an image drawn at random (so that rich images do not rule).

    All patches of a batch have one shape, that of its positives. Negatives are cropped or mirrored to it: neither can
    bring a nucleus into a patch that holds none, while a crop of a positive patch could lose the one it holds.
    """

    def __init__(self, source: TileSource, indices: Sequence[int], batch_size: int, seed: int) -> None:
        self._source = source
        self._batch_size = batch_size
        self._seed = seed
        self._positives = self._by_shape_and_group(indices)
        self._negatives = self._by_group(indices)
        counts = np.array([sum(map(len, groups.values())) for groups in self._positives.values()], float)
        self._shapes = list(self._positives)
        self._shape_odds = counts / counts.sum()

    def _by_shape_and_group(self, indices: Sequence[int]) -> dict[tuple[int, int], dict[str, list[int]]]:
        found: dict[tuple[int, int], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for i in indices:
            if self._source.patch_labels[i, 0] > 0:
                found[self._source.patch_shapes[i]][self._source.patch_groups[i]].append(i)
        return {shape: dict(groups) for shape, groups in found.items()}

    def _by_group(self, indices: Sequence[int]) -> dict[str, list[int]]:
        found: dict[str, list[int]] = defaultdict(list)
        for i in indices:
            if self._source.patch_labels[i, 0] == 0:
                found[self._source.patch_groups[i]].append(i)
        return dict(found)

    def batch(self, step: int, rows: Sequence[int] | None = None) -> PatchBatch:
        """The batch of `step`, or those of its rows: the same for the same seed and step, whatever was drawn before."""
        shape_rng = sample_rng(self._seed, step, self._batch_size)  # rows are numbered below
        shape = self._shapes[shape_rng.choice(len(self._shapes), p=self._shape_odds)]
        drawn = [self._row(step, row, shape) for row in (range(self._batch_size) if rows is None else rows)]
        images = np.stack([image for _, image in drawn])
        stain = np.stack([haematoxylin(image) for image in images])
        return PatchBatch(images, self._source.patch_labels[[index for index, _ in drawn]], stain)

    def _row(self, step: int, row: int, shape: tuple[int, int]) -> tuple[int, UInt8Array]:
        """The index of a patch and its image, augmented. The first half of the rows is positive."""
        rng = sample_rng(self._seed, step, row)
        index = _draw(self._positives[shape] if row < self._batch_size // 2 else self._negatives, rng)
        target = (-(-shape[0] // STRIDE) * STRIDE, -(-shape[1] // STRIDE) * STRIDE)
        return index, augment_patch(fit_to_shape(self._source.read_patch(index).image, target, rng), rng)


def _draw(groups: dict[str, list[int]], rng: np.random.Generator) -> int:
    names = list(groups)
    members = groups[names[rng.integers(len(names))]]
    return members[rng.integers(len(members))]


def fit_to_shape(image: UInt8Array, shape: tuple[int, int], rng: np.random.Generator) -> UInt8Array:
    """uint8 (H, W, 3) -> uint8 (h, w, 3) of `shape`: cropped at random where larger, mirrored where smaller."""
    missing = [max(0, want - have) for want, have in zip(shape, image.shape[:2], strict=True)]
    if any(missing):
        image = np.pad(image, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="symmetric")
    top, left = (int(rng.integers(have - want + 1)) for want, have in zip(shape, image.shape[:2], strict=True))
    return image[top : top + shape[0], left : left + shape[1]]

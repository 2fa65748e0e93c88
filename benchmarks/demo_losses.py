"""The first losses of the demo's recipe: python -m benchmarks.demo_losses writes tests/assets/demo_losses.json.

A change of network, loss, sampling, augmentation or drawing shows here at once. Settings are the recipe's own; the data
is a small drawing (patches of 64 px), so that the curve takes seconds. Regenerate after a change that was meant, and
say in its commit why the losses moved.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import config
from dataloader.augs import LabelledTile
from dataloader.classifier_loader import PatchSampler
from dataloader.datasets import open_source
from dataloader.datasets.demo import DemoSizes, write_demo_data
from dataloader.train_loader import TileSampler
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import ActivationMap, TileSource
from hovernet_cyclic.training.back_end import train_back_end
from hovernet_cyclic.training.devices import seed_everything
from hovernet_cyclic.training.front_end import train_front_end
from hovernet_cyclic.training.networks import Networks
from hovernet_cyclic.training.pseudo_masks import make_pseudo_masks, tile_candidates
from hovernet_cyclic.training.run_dir import Stage
from models.devices import Device
from models.hovernet.net_desc import input_shape

CURVE = Path(__file__).parents[1] / "tests" / "assets" / "demo_losses.json"
SIZES = DemoSizes(positives=24, negatives=24, tiles=2, valid=1, test=1, patch=64, tile=256)
FRONT_END_STEPS, BACK_END_STEPS = 20, 14


class Enough(Exception):
    """The first losses are known."""


class FirstLosses:
    """A log that ends training once it has heard `wanted` losses."""

    def __init__(self, wanted: int) -> None:
        self.heard: list[float] = []
        self._wanted = wanted

    def steps(self, items: Iterator[Any], total: int, name: str, images: int) -> Iterator[Any]:
        return items

    def loss(self, stage: str, step: int, parts: dict[str, float]) -> None:
        self.heard.append(sum(parts.values()))
        if len(self.heard) == self._wanted:
            raise Enough


def demo_losses() -> dict[str, list[float]]:
    """{'front_end', 'back_end': the sums of the first losses}, in float32 on one thread of the CPU."""
    recipe, device = config.demo(), Device(torch.device("cpu"), torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_demo_data(folder, sizes=SIZES)
            source = open_source(recipe.data, folder).train
            return {"front_end": front_end(recipe, source, device), "back_end": back_end(recipe, source, device)}
    finally:
        torch.set_num_threads(threads)


def front_end(recipe: TrainRecipe, source: TileSource, device: Device) -> list[float]:
    """Losses of the classifier, from random weights."""
    seed_everything(recipe.seed)
    classifier, log = Networks.fresh(recipe, device).classifier, FirstLosses(FRONT_END_STEPS)
    sampler = PatchSampler(source, range(len(source.patch_labels)), recipe.front_end.batch_size, recipe.seed)
    try:
        train_front_end(
            classifier, sampler, range(recipe.front_end.steps_first), recipe.front_end, Stage("", device, log)
        )
    except Enough:
        return log.heard
    raise AssertionError("the recipe takes fewer steps than are compared")


def back_end(recipe: TrainRecipe, source: TileSource, device: Device) -> list[float]:
    """Losses of the student, from random weights, on pseudo masks of haematoxylin alone."""
    seed_everything(recipe.seed)
    networks, log, settings = Networks.fresh(recipe, device), FirstLosses(BACK_END_STEPS), recipe.back_end
    shapes = input_shape(recipe.net.mode, settings.patch_shape), settings.patch_shape
    negatives = [i for i, label in enumerate(source.patch_labels[:, 0]) if label == 0]
    sampler = TileSampler(stained_tiles(recipe, source), (source, negatives), shapes, settings, recipe.seed)
    steps = range(settings.steps // (settings.widen_rounds + 1))
    try:
        train_back_end(networks.student, networks.teacher, sampler, steps, settings, Stage("", device, log))
    except Enough:
        return log.heard
    raise AssertionError("the recipe takes fewer steps than are compared")


def stained_tiles(recipe: TrainRecipe, source: TileSource) -> list[LabelledTile]:
    """Tiles with the pseudo masks of a front end that is certain of nothing."""
    tiles = [source.read_tile(i) for i in range(len(source.tile_ids))]
    unsure = [
        ActivationMap(tile.tile_id, np.zeros((1, *tile.image.shape[:2]), np.float32), np.ones(1, np.float32))
        for tile in tiles
    ]
    settings = recipe.pseudo_masks
    found = [tile_candidates(tile, activation, None, recipe) for tile, activation in zip(tiles, unsure, strict=True)]
    masks = make_pseudo_masks(found, 1, recipe.data.mpp, settings.trust_above, settings)
    return [LabelledTile(tile.image, mask.inst_map, mask.trusted) for tile, mask in zip(tiles, masks, strict=True)]


if __name__ == "__main__":
    CURVE.parent.mkdir(parents=True, exist_ok=True)
    curves = {name: [round(loss, 6) for loss in losses] for name, losses in demo_losses().items()}
    CURVE.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")
    print(f"Written: {CURVE}")

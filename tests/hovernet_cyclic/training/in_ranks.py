"""What the processes of test_ranks.py do, each with its rank: python in_ranks.py DATA_DIR OUT_DIR.

Loaded as a module, it does the same in the test's own process, alone.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import torch

import config
from dataloader.augs import LabelledTile
from dataloader.classifier_loader import PatchSampler
from dataloader.datasets import open_source
from dataloader.train_loader import TileSampler
from hovernet_cyclic.core.types import ActivationMap
from hovernet_cyclic.training.back_end import back_end_loss, train_back_end
from hovernet_cyclic.training.cyclic import run_cycles
from hovernet_cyclic.training.devices import seed_everything
from hovernet_cyclic.training.front_end import front_end_loss, patch_accuracy, train_front_end
from hovernet_cyclic.training.networks import Networks
from hovernet_cyclic.training.patch_score import score_on_patches
from hovernet_cyclic.training.processes import run_as_rank
from hovernet_cyclic.training.pseudo_masks import make_pseudo_masks, tile_candidates
from hovernet_cyclic.training.run_dir import RunDir, Stage
from infer.base import NetworkSegmenter
from models.devices import Device
from models.hovernet.net_desc import input_shape
from models.together import train_together

CPU = Device(torch.device("cpu"), torch.float32)
STEP = 3
OUTPUT = (64, 64)


def recipe_of(**changes):
    """A tiny recipe with batches that two processes cannot share evenly."""
    whole = config.folder()
    front_end = dataclasses.replace(whole.front_end, steps_first=2, steps_later=2, batch_size=5)
    back_end = dataclasses.replace(
        whole.back_end, steps=4, batch_size=3, negatives_per_batch=1, patch_shape=OUTPUT, annotated_per_batch=1
    )
    return dataclasses.replace(whole, front_end=front_end, back_end=back_end, num_cycles=1, **changes)


def typed_tiles(source):
    """Tiles with random nuclei, types and trust, so that each row of a batch counts differently; one without types."""
    rng = np.random.default_rng(0)
    tiles = []
    for index in range(len(source.tile_ids)):
        image = source.read_tile(index).image
        inst_map = np.kron(rng.integers(0, 4, (8, 8)), np.ones((16, 16), np.int32)).astype(np.int32)
        type_map = None if index == 0 else (inst_map % 3).astype(np.uint8)
        tiles.append(LabelledTile(image, inst_map, rng.random(inst_map.shape) < 0.2 + 0.6 * index, type_map))
    return tiles


def networks_of(recipe):
    seed_everything(4)
    return Networks.fresh(recipe, CPU)


def samplers(recipe, source):
    patches = PatchSampler(source, range(len(source.patch_labels)), recipe.front_end.batch_size, 5)
    negatives = [i for i, label in enumerate(source.patch_labels[:, 0]) if label == 0]
    tiles = typed_tiles(source)
    shapes = input_shape(recipe.net.mode, OUTPUT), OUTPUT
    return patches, TileSampler(tiles, (source, negatives), shapes, recipe.back_end, 5, tiles[1:])


class InDouble(torch.nn.Module):
    """A network in float64: float32's noise opens and shuts ReLUs, and moves gradients by parts in a thousand."""

    def __init__(self, network):
        super().__init__()
        self.network = network.double()

    def forward(self, images):
        return self.network(images.double())


def one_step(prefix, network, together, parts):
    """Terms, gradients and what BatchNorm has noted."""
    sum(parts.values()).backward()
    found = {f"{prefix}.{name}": value.detach().numpy() for name, value in parts.items()}
    found |= {f"{prefix}.grad.{name}": value.grad.numpy().copy() for name, value in network.named_parameters()}
    found |= {f"{prefix}.buffer.{name}": value.numpy().copy() for name, value in network.named_buffers()}
    assert {name.removeprefix("module.") for name in together.state_dict()} == set(network.state_dict())
    return found


def first_losses(recipe, source, ranks, exact):
    """Of both ends. exact: in float64."""
    networks, (patches, tiles), end = networks_of(recipe), samplers(recipe, source), "64" if exact else ""
    classifier, student, teacher = networks.classifier.train(), networks.student.train(), networks.teacher
    if exact:
        classifier, student, teacher.module = InDouble(classifier), InDouble(student), InDouble(teacher.module)
    both = train_together(classifier, ranks), train_together(student, ranks)
    rows = [ranks.own(range(settings.batch_size)) for settings in (recipe.front_end, recipe.back_end)]
    shown, taught = patches.batch(STEP, rows[0]), tiles.batch(STEP, rows[1])
    terms = front_end_loss(both[0], shown, recipe.front_end, CPU, ranks)
    found = one_step(f"front{end}", classifier, both[0], terms)
    terms = back_end_loss(both[1], teacher, taught, recipe.back_end, CPU, ranks)
    found |= one_step(f"back{end}", student, both[1], terms)
    found["rows.patches"], found["rows.images"] = shown.images, taught.images
    found["rows.hv"] = np.stack([target.hv_map for target in taught.targets])
    return found


class Losses:
    def __init__(self):
        self.heard = []

    def steps(self, items, *_):
        return items

    def loss(self, curves, step, parts):
        self.heard.append(sum(parts.values()))

    def waited(self, *_):
        pass


def trained(recipe, source, ranks):
    """Two stages of the student in a row, so that gradients are gathered anew for each, and one of the classifier."""
    networks, (patches, tiles), log = networks_of(recipe), samplers(recipe, source), Losses()
    stage = Stage("", CPU, log, ranks)
    train_front_end(networks.classifier, patches, range(2), recipe.front_end, stage)
    networks.student.freeze_encoder(True)
    train_back_end(networks.student, networks.teacher, tiles, range(2), recipe.back_end, stage)
    networks.student.freeze_encoder(False)
    train_back_end(networks.student, networks.teacher, tiles, range(2, 4), recipe.back_end, stage)
    found = {f"taught.{name}": value.numpy() for name, value in networks.student.state_dict().items()}
    return found | {"losses": np.array(log.heard)}


def judged(recipe, source, ranks):
    """Pseudo masks and scores, given the same networks."""
    networks, everything = networks_of(recipe), range(len(source.patch_labels))
    tiles = [source.read_tile(i) for i in ranks.own(range(len(source.tile_ids)))]
    evidence = [np.full((1, *tile.image.shape[:2]), 1.0, np.float32) for tile in tiles]
    segmenter = NetworkSegmenter(networks.teacher.module, recipe.net.mode, "cpu")
    candidates = [
        tile_candidates(tile, ActivationMap(tile.tile_id, values, np.ones(1)), segmenter.raw_maps(tile.image), recipe)
        for tile, values in zip(tiles, evidence, strict=True)
    ]
    masks = ranks.gather(make_pseudo_masks(candidates, 1, 0.25, 0.5, recipe.pseudo_masks, ranks))
    score = score_on_patches(segmenter, source, everything, recipe, ranks)
    accuracy = patch_accuracy(networks.classifier, source, everything, CPU, ranks, batch_size=5)
    found = {f"mask.{mask.tile_id}.{key}": np.asarray(value) for mask in masks for key, value in vars(mask).items()}
    return found | {"score": np.array(score), "accuracy": np.array(accuracy)}


def exchanged(ranks):
    """Small things that all must agree on."""
    items = list("abcde")
    return {
        "gathered": np.array(ranks.gather([item.upper() for item in ranks.own(items)])),
        "to_lead": np.array(ranks.gather_to_lead(list(ranks.own(items)))),
        "any": np.array([ranks.any(ranks.rank == ranks.count - 1), ranks.any(False)]),
        "mean": ranks.mean(torch.arange(3.0)[ranks.rank :: ranks.count]).numpy(),
        "of none": ranks.mean(torch.zeros(0)).numpy(),
    }


def everything(data_dir, out_dir, ranks):
    """All arrays that test_ranks.py compares."""
    recipe = recipe_of()
    typed = dataclasses.replace(recipe, net=dataclasses.replace(recipe.net, nr_types=3))
    source = open_source(recipe.data, data_dir).train
    found = exchanged(ranks) | first_losses(typed, source, ranks, exact=False) | trained(typed, source, ranks)
    found |= first_losses(typed, source, ranks, exact=True)
    found |= judged(recipe, source, ranks)
    run_cycles(recipe, source, RunDir(Path(out_dir) / f"run_{ranks.count}"), CPU, quiet=True, ranks=ranks)
    return found


if __name__ == "__main__":
    data, out = sys.argv[1:]

    def work(device, ranks):
        torch.set_num_threads(1)
        np.savez(Path(out) / f"rank_{ranks.rank}.npz", **everything(data, out, ranks))
        return 0

    sys.exit(run_as_rank(work, "cpu", 0, out))

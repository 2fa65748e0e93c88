"""Every shipped recipe: it is sound, it survives a checkpoint, and it trains."""

import dataclasses

import numpy as np
import pytest
import torch

import config
from dataloader.augs import LabelledTile
from dataloader.classifier_loader import PatchSampler
from dataloader.datasets import open_source
from dataloader.train_loader import TileSampler
from hovernet_cyclic.core.settings import NetSettings, TrainRecipe
from hovernet_cyclic.training.back_end import train_back_end
from hovernet_cyclic.training.front_end import train_front_end
from hovernet_cyclic.training.networks import Networks
from hovernet_cyclic.training.run_dir import Stage
from models.hovernet.net_desc import input_shape, patch_shapes

NAMES = list(config.RECIPES)
PAPER = ("monusac", "ccrcc", "consep")


class SilentLog:
    def __init__(self):
        self.heard = []

    def steps(self, items, total, name, images):
        return items

    def waited(self, *_):
        pass

    def loss(self, stage, step, parts):
        self.heard.append(sum(parts.values()))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_carries_its_name_and_survives_a_checkpoint(name):
    recipe = config.RECIPES[name]()
    assert recipe.name == name and recipe == config.RECIPES[name]()
    assert TrainRecipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize("name", ["demo", "folder", "benchmark", *PAPER, "fast", "original", "custom"])
def test_these_recipes_learn_without_drawn_masks(name):
    assert config.RECIPES[name]().supervision == "image_level"


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_crops_what_its_network_takes(name):
    recipe = config.RECIPES[name]()
    shape = input_shape(recipe.net.mode, recipe.back_end.patch_shape)
    usual = patch_shapes(recipe.net.mode)
    assert shape <= usual.input and recipe.back_end.patch_shape <= usual.output
    assert (shape == usual.input) == (recipe.back_end.patch_shape == usual.output)


def some_steps(recipe, data_dir, device, count):
    """Losses of `count` steps of each end, and the names of the student's tensors that they moved."""
    source = open_source(recipe.data, str(data_dir)).train
    torch.manual_seed(0)
    networks, log = Networks.fresh(recipe, device), SilentLog()
    stage = Stage("test", device, log)
    patches = range(len(source.patch_labels))
    sampler = PatchSampler(source, patches, recipe.front_end.batch_size, recipe.seed)
    train_front_end(networks.classifier, sampler, range(count), recipe.front_end, stage)
    image = source.read_tile(0).image
    inst_map = np.zeros(image.shape[:2], np.int32)
    inst_map[40:60, 40:60], inst_map[60:75, 62:80] = 1, 2
    tile = LabelledTile(image, inst_map, np.arange(image.shape[1])[None].repeat(image.shape[0], 0) < 90)
    negatives = [i for i in patches if source.patch_labels[i, 0] == 0]
    shapes = input_shape(recipe.net.mode, recipe.back_end.patch_shape), recipe.back_end.patch_shape
    sampler = TileSampler([tile], (source, negatives), shapes, recipe.back_end, recipe.seed)
    before = {key: value.clone() for key, value in networks.student.state_dict().items()}
    train_back_end(networks.student, networks.teacher, sampler, range(count), recipe.back_end, stage)
    moved = [key for key, value in networks.student.state_dict().items() if not torch.equal(value, before[key])]
    assert networks.teacher.updates == count
    return log.heard, moved


@pytest.mark.parametrize("name", NAMES)
def test_some_steps_of_either_end_with_the_small_network(name, drawn_once, bench_data, paper_once, tiny, cpu):
    small = dataclasses.replace(config.RECIPES[name](), net=NetSettings("small"))
    data_dir = {"benchmark": bench_data, **dict.fromkeys(PAPER, paper_once)}.get(small.data.reader, drawn_once)
    recipe, steps = tiny(small), 10 if name in PAPER else 2
    front_end = dataclasses.replace(recipe.front_end, steps_first=steps)
    recipe = dataclasses.replace(
        recipe, front_end=front_end, back_end=dataclasses.replace(recipe.back_end, steps=steps)
    )
    losses, moved = some_steps(recipe, data_dir, cpu, steps)
    assert len(losses) == 2 * steps and np.isfinite(losses).all() and min(losses) > 0
    assert any(key.startswith("decoder.np") for key in moved) and any(key.startswith("stem") for key in moved)


@pytest.mark.parametrize("name", ["fast", "original"])
def test_a_step_of_either_end_with_hovernets_own_networks(name, drawn_once, tiny, cpu):
    recipe = tiny(config.RECIPES[name]())
    assert recipe.net.mode == name
    back_end = dataclasses.replace(recipe.back_end, batch_size=1, negatives_per_batch=0)
    recipe = dataclasses.replace(
        recipe, front_end=dataclasses.replace(recipe.front_end, batch_size=2), back_end=back_end
    )
    losses, moved = some_steps(recipe, drawn_once, cpu, 1)
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert any(key.startswith("decoder.hv") for key in moved) and any(key.startswith("d3") for key in moved)

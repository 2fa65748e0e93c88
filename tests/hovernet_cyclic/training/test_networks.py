"""A cycle is kept or rolled back; a state is saved and restored."""

import dataclasses
import math

import pytest
import torch

import config
from hovernet_cyclic.core.errors import CheckpointError
from hovernet_cyclic.training.networks import Networks
from models.checkpoint import load_checkpoint, load_network


@pytest.fixture
def networks(tiny, cpu):
    torch.manual_seed(0)
    return Networks.fresh(tiny(config.folder()), cpu)


def change(networks):
    """As a cycle does: every tensor of every network becomes another one, BatchNorm's statistics too."""
    with torch.no_grad():
        for module in (networks.classifier, networks.student, networks.teacher.module):
            for tensor in module.state_dict().values():
                tensor.add_(1)


def weights(networks):
    modules = (networks.classifier, networks.student, networks.teacher.module)
    return [tensor.clone() for module in modules for tensor in module.state_dict().values()]


def same(one, other):
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def test_the_teacher_begins_as_the_student(networks):
    assert same(networks.student.state_dict().values(), networks.teacher.module.state_dict().values())


@pytest.mark.parametrize("score", [631.0, 700.0, 800.0])
def test_a_cycle_that_is_not_clearly_worse_is_kept(networks, score):
    networks.keep_or_roll_back(1, 700.0)
    change(networks)
    new = weights(networks)
    kept, reason = networks.keep_or_roll_back(2, score)
    assert (
        kept
        and reason.startswith(f"kept: {score:.0f} nuclei per mm2 more in positive")
        and reason.endswith("(best so far: 700)")
    )
    assert same(weights(networks), new)
    assert (networks.cycles_done, networks.best_cycle, networks.best_score) == (2, 2, max(score, 700.0))


def test_small_losses_do_not_add_up(networks):
    """What is clearly worse is so beside the best cycle, and not beside the last one that was kept."""
    kept = [networks.keep_or_roll_back(cycle, score)[0] for cycle, score in ((1, 700.0), (2, 650.0), (3, 620.0))]
    assert kept == [True, True, False] and networks.best_cycle == 2


def test_more_false_nuclei_are_worse_where_there_is_nothing_else_to_judge_by(networks):
    """A score below 0."""
    kept = [networks.keep_or_roll_back(cycle, score)[0] for cycle, score in ((1, -100.0), (2, -105.0), (3, -120.0))]
    assert kept == [True, True, False]


def test_a_worse_cycle_is_rolled_back_exactly_and_more_than_once(networks):
    kept, reason = networks.keep_or_roll_back(1, 700.0)
    assert kept and "best so far" not in reason
    best = weights(networks)
    for cycle in (2, 3):
        change(networks)
        kept, reason = networks.keep_or_roll_back(cycle, 629.0)
        assert not kept and reason == "rolled back to cycle 1: a surplus of 629 nuclei per mm2 is clearly below 700"
        assert same(weights(networks), best)
        assert (networks.cycles_done, networks.best_cycle, networks.best_score) == (cycle, 1, 700.0)


def test_what_cannot_be_judged_is_kept(networks):
    networks.keep_or_roll_back(1, math.nan)
    change(networks)
    new = weights(networks)
    kept, reason = networks.keep_or_roll_back(2, math.nan)
    assert kept and "no held-out patches" in reason and same(weights(networks), new)
    assert networks.best_cycle == 2
    assert networks.keep_or_roll_back(3, 0.1)[0], "a known score is not below an unknown one"


def test_a_restored_state_goes_on_where_it_was_saved(networks, tiny, cpu, tmp_path):
    recipe = tiny(config.folder())
    networks.keep_or_roll_back(1, 0.6)
    change(networks)
    networks.keep_or_roll_back(2, 0.9)
    networks.teacher.updates = 17
    networks.save_state(tmp_path / "state.tar", recipe)
    restored = Networks.restore(tmp_path / "state.tar", recipe, cpu)
    assert same(weights(restored), weights(networks))
    assert (restored.cycles_done, restored.best_cycle, restored.best_score) == (2, 2, 0.9)
    assert restored.teacher.updates == 17
    change(restored)
    assert not restored.keep_or_roll_back(3, 0.8)[0]
    assert same(weights(restored), weights(networks)), "the best weights were restored too"


def test_the_number_of_cycles_and_the_folder_are_free_nothing_else(networks, tiny, cpu, tmp_path):
    path = tmp_path / "state.tar"
    networks.keep_or_roll_back(1, 0.6)
    networks.save_state(path, tiny(config.folder()))
    recipe = tiny(config.folder())
    Networks.restore(path, dataclasses.replace(recipe, num_cycles=9, log_dir="moved"), cpu)
    for changes in ({"seed": 3}, {"name": "other"}, {"back_end": dataclasses.replace(recipe.back_end, steps=4)}):
        with pytest.raises(CheckpointError, match="another recipe"):
            Networks.restore(path, dataclasses.replace(recipe, **changes), cpu)


def test_the_product_is_the_teacher_and_its_recipe(networks, tiny, tmp_path):
    recipe = tiny(config.folder())
    with torch.no_grad():
        for tensor in networks.teacher.module.parameters():
            tensor.mul_(2)
    networks.save_net(tmp_path / "net.tar", recipe)
    stored = load_checkpoint(tmp_path / "net.tar")
    assert stored.classifier is None and stored.student is None and stored.recipe == recipe.to_dict()
    loaded = load_network(tmp_path / "net.tar")
    assert same(loaded.net.state_dict().values(), networks.teacher.module.state_dict().values())

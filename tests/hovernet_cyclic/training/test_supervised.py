"""Training on drawn masks alone: what moves in which phase, types are learnt, stopping changes nothing."""

import dataclasses
import os
import shutil
import signal

import numpy as np
import pytest
import torch

import config
from dataloader.datasets import open_source
from hovernet_cyclic.core.errors import CheckpointError
from hovernet_cyclic.core.settings import BackEndSettings, DataSettings, NetSettings, TrainRecipe
from hovernet_cyclic.core.types import Annotation, ImageTile, whole_image
from hovernet_cyclic.training import supervised
from hovernet_cyclic.training.optimiser import OneCycleAdamW
from hovernet_cyclic.training.run_dir import RunDir
from hovernet_cyclic.training.signals import Preempted, listening
from hovernet_cyclic.training.supervised import phases, run_supervised
from infer.base import NetworkSegmenter
from models.checkpoint import load_checkpoint, load_network


def masks_recipe(tiny, **back_end):
    made = tiny(config.benchmark_masks())
    changed = dataclasses.replace(made.back_end, **{"steps": 4, "frozen_steps": 2, **back_end})
    return dataclasses.replace(made, data=DataSettings("folder"), back_end=changed)


@pytest.fixture
def run_masks(tiny, cpu, drawn_once):
    def run(log_dir, resume=False, data_dir=drawn_once, **changes):
        recipe = masks_recipe(tiny, **changes)
        source = open_source(recipe.data, str(data_dir), with_patches=False).train_annotated
        folder = RunDir.open(log_dir, resume)
        run_supervised(recipe, source, folder, cpu, quiet=True)
        return folder

    return run


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize(
    ("frozen", "expected"),
    [
        (0, [("all", range(4), False)]),
        (1, [("decoders", range(1), True), ("all", range(1, 4), False)]),
        (4, [("decoders", range(4), True)]),
    ],
)
def test_the_phases_make_up_the_steps(frozen, expected):
    assert phases(BackEndSettings(steps=4, frozen_steps=frozen)) == expected


def test_a_run_leaves_the_product_and_what_a_resumed_run_needs(run_masks, tmp_path, tiny):
    run = run_masks(tmp_path / "run")
    names = {str(path.relative_to(run.path)) for path in run.path.rglob("*") if path.is_file()}
    assert {name for name in names if "tensorboard" not in name} == {
        "cycle_1/net.tar",
        "cycles.json",
        "history.jsonl",
        "net.tar",
        "report.html",
        "state.tar",
        "state.previous.tar",
    }
    (row,) = run.read_json("cycles.json", [])
    assert (row["cycle"], row["kept"], row["steps"], row["reason"]) == (1, True, 4, "4 steps on drawn masks")
    state, product = load_checkpoint(run.state), load_checkpoint(run.net)
    assert (state.step, state.rng["teacher_updates"]) == (4, 4)
    assert product.recipe == masks_recipe(tiny).to_dict() and product.student is None
    assert same_weights(product.teacher, state.teacher) and not same_weights(state.teacher, state.student)
    assert same_weights(product.teacher, load_checkpoint(run.path / "cycle_1" / "net.tar").teacher)


def test_patches_need_not_be_there(run_masks, own_data, tmp_path):
    shutil.rmtree(own_data / "patches")
    assert run_masks(tmp_path / "run", data_dir=own_data).net.exists()


def test_the_encoder_stays_in_the_first_phase_and_learns_in_the_second(run_masks, tmp_path, monkeypatch):
    seen = []
    honest = supervised.train_back_end

    def watched(student, *rest):
        before = {name: value.clone() for name, value in student.state_dict().items()}
        honest(student, *rest)
        moved = {name.split(".")[0] for name, value in student.state_dict().items() if not value.equal(before[name])}
        seen.append(moved)
        assert rest[3].consistency_weight == 0, "there is no pixel that the teacher would have to speak for"

    monkeypatch.setattr(supervised, "train_back_end", watched)
    run_masks(tmp_path / "run")
    assert seen[0] == {"decoder"} and seen[1] == {"decoder", "stem", "e0", "e1", "e2"}


def test_a_run_that_was_stopped_in_its_second_phase_ends_as_if_it_had_not(run_masks, tmp_path, monkeypatch):
    whole = run_masks(tmp_path / "whole")
    honest = supervised.train_back_end

    def interrupted(student, teacher, sampler, steps, *rest):
        if steps.start:
            raise KeyboardInterrupt
        return honest(student, teacher, sampler, steps, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(supervised, "train_back_end", interrupted)
        run_masks(tmp_path / "run")
    assert load_checkpoint(tmp_path / "run" / "state.tar").step == 2 and not (tmp_path / "run" / "net.tar").exists()
    again = run_masks(tmp_path / "run", resume=True)
    for name in ("net.tar", "state.tar"):
        one, other = load_checkpoint(whole.path / name), load_checkpoint(again.path / name)
        assert same_weights(one.teacher, other.teacher)
    assert again.read_json("cycles.json", [])[0]["steps"] == 4 and len(again.read_json("cycles.json", [])) == 1
    monkeypatch.setattr(supervised, "train_back_end", lambda *_: pytest.fail("a finished run was trained again"))
    run_masks(tmp_path / "run", resume=True)
    with pytest.raises(CheckpointError, match="another recipe"):
        run_masks(tmp_path / "run", resume=True, ema_decay=0.5)


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_that_is_asked_to_stop_in_a_phase_goes_on_from_that_step(step, run_masks, tmp_path, monkeypatch):
    whole = run_masks(tmp_path / "whole")
    honest, done = OneCycleAdamW.step, []

    def interrupted(*arguments):
        done.append(1)
        if len(done) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return honest(*arguments)

    with monkeypatch.context() as patched, listening(), pytest.raises(Preempted):
        patched.setattr(OneCycleAdamW, "step", interrupted)
        run_masks(tmp_path / "run")
    place = load_checkpoint(tmp_path / "run" / "state.tar").position
    assert (place["part"], place["step"]) == (step // 2, 1)
    again = run_masks(tmp_path / "run", resume=True)
    for name in ("net.tar", "state.tar"):
        one, other = load_checkpoint(whole.path / name), load_checkpoint(again.path / name)
        assert same_weights(one.teacher, other.teacher)
    assert same_weights(one.student, other.student)


class Discs:
    """Dark discs are of type 1, red ones of type 2. One of the tiles tells no types."""

    tile_ids = ("t0", "t1", "t2")

    def read_tile(self, index):
        return ImageTile(f"t{index}", self.drawn(index)[0], 0.25)

    def annotation(self, index):
        _, inst_map, type_map = self.drawn(index)
        return Annotation(f"t{index}", inst_map, None if index == 2 else type_map)

    def drawn(self, index):
        rng = np.random.default_rng(index)
        inst_map, rows, columns = np.zeros((192, 192), np.int32), *np.mgrid[:192, :192]
        for number, (y, x) in enumerate(np.stack(np.meshgrid(*[np.arange(16, 192, 32)] * 2), -1).reshape(-1, 2), 1):
            inst_map[(rows - y) ** 2 + (columns - x) ** 2 < rng.uniform(7, 12) ** 2] = number
        type_map = np.where(inst_map > 0, 1 + inst_map % 2, 0).astype(np.uint8)
        colours = np.array([(235, 215, 230), (70, 40, 120), (200, 60, 60)], np.int64)
        image = colours[type_map] + rng.integers(-12, 13, (192, 192, 3))
        return np.clip(image, 0, 255).astype(np.uint8), inst_map, type_map


def test_types_are_learnt_and_told_per_nucleus(tmp_path, cpu):
    from infer.finish import Finisher, TileJob
    from infer.type_info import default_type_info
    from infer.writers import OutputFolder

    back_end = BackEndSettings(steps=70, batch_size=2, patch_shape=(64, 64), learning_rate=4e-3, ema_decay=0.8)
    names = ("background", "dark", "red")
    data = DataSettings("folder", type_names=names)
    recipe = TrainRecipe("types", data, "masks", back_end=back_end, net=NetSettings(nr_types=3), num_cycles=1)
    net = run_supervised(recipe, Discs(), RunDir.open(tmp_path / "run", False), cpu, quiet=True)
    loaded = load_network(net)
    assert loaded.nr_types == 3
    image, inst_map, type_map = Discs().drawn(9)
    raw = NetworkSegmenter(loaded.net, loaded.mode, "cpu").raw_maps(image)
    inside = inst_map > 0
    assert np.mean(raw.type_map[inside] == type_map[inside]) > 0.9
    outputs = OutputFolder(tmp_path / "out", default_type_info(3, names))
    assert Finisher(outputs, "local")(TileJob(tmp_path / "tile.png", image, raw, whole_image(image).box)) == 36
    check_written(tmp_path / "out", type_map)


def check_written(out, type_map):
    """What a person reads: the types in the overlay's colours, and the same numbers in every file."""
    import json

    from scipy.io import loadmat

    from dataloader.images import read_rgb

    nuclei = json.loads((out / "json" / "tile.json").read_text())["nuc"]
    mat = loadmat(out / "mat" / "tile.mat")
    features = json.loads((out / "geojson" / "tile.geojson").read_text())["features"]
    overlay = read_rgb(out / "overlay" / "tile.png")
    assert mat["inst_type_probs"].shape == (36, 3)
    for nucleus, kind, probs, feature in zip(
        nuclei.values(), mat["inst_type"], mat["inst_type_probs"], features, strict=True
    ):
        x, y = (round(value) for value in nucleus["centroid"])
        assert nucleus["type"] == kind[0] == type_map[y, x]
        np.testing.assert_allclose(nucleus["type_probs"], probs, atol=1e-5)
        assert probs.argmax() == nucleus["type"] and probs.sum() == pytest.approx(1, abs=1e-2)
        measured = feature["properties"]["measurements"]
        np.testing.assert_allclose([measured[f"p({name})"] for name in ("background", "dark", "red")], probs, atol=1e-5)
        assert feature["properties"]["classification"]["name"] == ("background", "dark", "red")[kind[0]]
        colour = tuple(feature["properties"]["classification"]["color"])
        assert colour in {tuple(overlay[py, px]) for px, py in nucleus["contour"]}

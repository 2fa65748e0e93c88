"""Each arm differs from the whole recipe in what it says, and all stand in one table."""

import dataclasses
import json
import shutil

import pytest

import config
import run_train
from benchmarks import ablation, accuracy
from hovernet_cyclic.core.errors import RecipeError
from models.ranks import ALONE

OPTIONS = {
    "--arms": "all",
    "--recipe": "benchmark",
    "--cycles": None,
    "--steps": None,
    "--steps_later": None,
    "--seeds": "10,11",
    "--log_dir": "logs",
}


def steps_of(recipe):
    return recipe.back_end.steps_in(recipe.num_cycles).stop


def test_every_arm_is_a_recipe_of_its_own_with_a_folder_for_each_seed():
    runs = ablation.chosen_runs(OPTIONS)
    assert len(runs) == 2 * len(ablation.all_arms()) == len({run.path for run, _ in runs.values()})
    recipes = {arm: recipe for (arm, seed), (_, recipe) in runs.items() if seed == 10}
    assert recipes["whole"] == config.benchmark()
    assert all(recipe != recipes["whole"] for arm, recipe in recipes.items() if arm != "whole")
    assert {seed: recipe.seed for (_, seed), (_, recipe) in runs.items()} == {10: 10, 11: 11}


def test_arms_take_the_steps_of_the_whole_but_where_they_are_about_them():
    whole = config.benchmark()
    for name, (_, change) in ablation.all_arms().items():
        recipe = change(whole)
        assert steps_of(recipe) == (whole.back_end.steps if name == "one_cycle" else steps_of(whole))
    more = ablation.same_steps_in_one_cycle(whole)
    assert more.num_cycles == 1 and more.front_end.steps_first == whole.front_end.steps_in(whole.num_cycles).stop


def test_all_is_taught_where_nothing_is_ignored():
    masks = ablation.everything_taught(config.benchmark()).pseudo_masks
    assert masks.dismiss_below == masks.trust_later <= masks.trust_above and masks.dark_quantile == 1.0
    masks = ablation.everything_taught(dataclasses.replace(config.benchmark(), num_cycles=1)).pseudo_masks
    assert masks.dismiss_below == masks.trust_above


def test_shorter_runs_are_as_short_in_every_arm():
    runs = ablation.chosen_runs(OPTIONS | {"--cycles": "1", "--steps": "50", "--seeds": "3"})
    assert all(steps_of(recipe) == 50 and recipe.seed == 3 for _, recipe in runs.values())
    runs = ablation.chosen_runs(OPTIONS | {"--cycles": "2", "--steps": "50", "--steps_later": "70"})
    assert {name: steps_of(recipe) for (name, _), (_, recipe) in runs.items()} == {
        name: 50 if name == "one_cycle" else 120 for name, _ in runs
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"--arms": "whole,none"},
        {"--recipe": "none"},
        {"--steps": "many"},
        {"--steps_later": "-5"},
        {"--cycles": "2,3"},
        {"--seeds": "1,"},
    ],
)
def test_what_is_unknown_is_refused(wrong):
    with pytest.raises(RecipeError):
        ablation.chosen_runs(OPTIONS | wrong)


def test_runs_are_trained_once_and_stand_in_one_table(bench_data, tmp_path, tiny, cpu, monkeypatch, capsys):
    small = dataclasses.replace(tiny(config.benchmark()), num_cycles=1)
    monkeypatch.setitem(config.RECIPES, "benchmark", lambda: small)
    trained = []

    def here(recipe, run, arguments):
        trained.append(run.path.name)
        if len(trained) > 1:  # one run is trained, the others are copies of it
            shutil.copytree(tmp_path / trained[0], run.path)
            run.write_json("recipe.json", {**run.read_json("recipe.json", None), "recipe": recipe.to_dict()})
            return
        options = {"--data_dir": arguments["--data_dir"], "--gpu": "cpu", "--resume": False, "--no_scores": True}
        assert run_train.train_as(options, dataclasses.replace(recipe, log_dir=str(run.path)), cpu, ALONE) == 0

    monkeypatch.setattr(ablation, "train", here)
    out = tmp_path / "table.json"
    options = [f"--data_dir={bench_data}", f"--log_dir={tmp_path}", f"--out={out}", "--seeds=1,2", "--valid_only"]
    for arms in ("whole", "whole,no_pasting"):
        monkeypatch.setattr("sys.argv", ["ablation", *options, f"--arms={arms}"])
        assert ablation.main() == 0
    assert trained == ["whole_1", "whole_2", "no_pasting_1", "no_pasting_2"]
    report = json.loads(out.read_text())
    assert set(report["rows"]) == {"valid"} and set(report["rows"]["valid"]["whole"]) == {"1", "2"}
    lines = capsys.readouterr().out.splitlines()
    assert sum("no_pasting" in line and "+-" in line for line in lines) == 1
    asked, honest = [], accuracy.MeanOfViews
    monkeypatch.setattr(accuracy, "MeanOfViews", lambda net, views: asked.append(views) or honest(net, views))
    monkeypatch.setattr("sys.argv", ["ablation", *options, "--arms=whole", "--score_only", "--views=2"])
    assert ablation.main() == 0 and asked == [2, 2]
    monkeypatch.setattr("sys.argv", ["ablation", *options, "--arms=whole", "--steps=7"])
    assert ablation.main() == 2 and len(trained) == 4
    assert "whole_1: a run of other settings is here" in capsys.readouterr().err


@pytest.mark.parametrize("main", [ablation.main, accuracy.main])
def test_views_are_checked_before_anything_is_trained(tmp_path, monkeypatch, capsys, main):
    monkeypatch.setattr("sys.argv", ["benchmark", f"--log_dir={tmp_path}", "--views=9"])
    assert main() == 2 and not list(tmp_path.iterdir())
    assert "--views=9: give a whole number from 1 to 8" in capsys.readouterr().err


def test_nothing_finished_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["ablation", f"--log_dir={tmp_path}", "--score_only"])
    assert ablation.main() == 2
    assert "no run is finished here" in capsys.readouterr().err

"""The arms differ in what is learnt from alone, share network and time, and stand in one table."""

import dataclasses
import json

import pytest

import config
import run_train
from benchmarks import accuracy
from hovernet_cyclic.core.errors import RecipeError
from models.ranks import ALONE

OPTIONS = {"--recipe": "benchmark", "--seed": "10", "--annotated_tiles": "2", "--arms": "image_level,mixed,masks"}


def test_the_arms_share_all_but_what_they_learn_from():
    arms = accuracy.chosen_arms(OPTIONS)
    assert [recipe.supervision for recipe in arms.values()] == list(arms) == ["image_level", "mixed", "masks"]
    whole = arms["image_level"]
    assert whole == config.benchmark() and arms["mixed"].data.annotated_tiles == 2
    assert len({recipe.net for recipe in arms.values()}) == len({recipe.seed for recipe in arms.values()}) == 1
    assert arms["masks"].back_end.steps == whole.back_end.steps_in(whole.num_cycles).stop
    assert arms["mixed"].back_end == whole.back_end and arms["mixed"].num_cycles == whole.num_cycles


@pytest.mark.parametrize(
    "wrong", [{"--arms": "image_level,all"}, {"--recipe": "none"}, {"--recipe": "benchmark_masks"}]
)
def test_other_arms_are_refused(wrong):
    with pytest.raises(RecipeError):
        accuracy.chosen_arms(OPTIONS | wrong)


def test_steps_fill_the_minutes_by_a_straight_line(monkeypatch):
    assert accuracy.share_that_fills(130, (0.1, 0.3), (40, 60)) == pytest.approx(1.0)
    recipe = config.benchmark()
    spent = []

    def seconds(probe, _):
        spent.append(probe.back_end.steps)
        return 20 + 0.5 * probe.back_end.steps

    monkeypatch.setattr(accuracy, "probe_seconds", seconds)
    fitted = accuracy.in_time(recipe, {"--minutes": "2"})
    assert fitted.back_end.steps == pytest.approx(200, abs=2) and max(spent) < 0.1 * recipe.back_end.steps
    ratio = fitted.front_end.steps_first / recipe.front_end.steps_first
    assert ratio == pytest.approx(fitted.back_end.steps / recipe.back_end.steps, rel=0.02)
    assert fitted == dataclasses.replace(recipe, front_end=fitted.front_end, back_end=fitted.back_end)
    assert accuracy.in_time(recipe, {"--minutes": None}) == recipe
    with pytest.raises(RecipeError, match="takes more without any step"):
        accuracy.in_time(recipe, {"--minutes": "0.3"})


def test_every_stage_keeps_a_step():
    least = accuracy.scaled(config.benchmark(), 1e-9)
    assert (least.front_end.steps_first, least.front_end.steps_later) == (1, 1)
    assert least.back_end.steps == least.back_end.steps_later == least.back_end.widen_rounds + 1
    assert accuracy.scaled(config.demo(), 0.5).back_end.steps_in(2) == range(120, 240), (
        "as many in each cycle, as before"
    )


def test_all_arms_stand_in_one_table_with_what_they_cost(bench_data, tmp_path, tiny, cpu, monkeypatch, capsys):
    small = dataclasses.replace(tiny(config.benchmark()), num_cycles=1)
    monkeypatch.setitem(config.RECIPES, "benchmark", lambda: small)

    def here(recipe, run, arguments):
        options = {"--data_dir": arguments["--data_dir"], "--gpu": "cpu", "--resume": False, "--no_scores": True}
        assert run_train.train_as(options, dataclasses.replace(recipe, log_dir=str(run.path)), cpu, ALONE) == 0

    monkeypatch.setattr(accuracy, "train", here)
    out = tmp_path / "table.json"
    options = [
        f"--data_dir={bench_data}",
        f"--log_dir={tmp_path / 'run'}",
        f"--out={out}",
        f"--arms={OPTIONS['--arms']}",
    ]
    asked, honest = [], accuracy.MeanOfViews
    monkeypatch.setattr(accuracy, "MeanOfViews", lambda net, views: asked.append(views) or honest(net, views))
    for more in ([], ["--reuse", "--views=2"]):
        monkeypatch.setattr("sys.argv", ["accuracy", *options, *more])
        assert accuracy.main() == 0
    assert set(asked[: len(asked) // 2]) == {1} and set(asked[len(asked) // 2 :]) == {2}
    printed = capsys.readouterr().out
    assert "mixed, cycle 1" in printed and "2 steps on drawn masks" in printed
    report = json.loads(out.read_text())
    rows = ["Otsu + watershed", "image-level, cycle 1", "mixed, cycle 1", "masks"]
    assert [list(split) for split in report["rows"].values()] == [rows, rows]
    assert report["arms"]["masks"]["front_end_steps"] == 0 and report["arms"]["mixed"]["front_end_steps"] == 2
    assert all(cost["back_end_steps"] == 2 and cost["minutes"] > 0 for cost in report["arms"].values())
    monkeypatch.setattr(
        "sys.argv", ["accuracy", "--reuse", f"--data_dir={bench_data}", f"--log_dir={tmp_path / 'none'}"]
    )
    assert accuracy.main() == 2 and "no run to score" in capsys.readouterr().err

"""The folder of a run, and its log."""

import json

import cv2
import numpy as np
import pytest

import config
from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.training.history import read_history
from hovernet_cyclic.training.run_dir import RunDir, StageLog, describe_run


def test_cycles_stand_in_order_of_number_not_of_name(tmp_path):
    run = RunDir(tmp_path)
    for cycle in (10, 2, 1):
        (run.cycle(cycle) / "net.tar").write_bytes(b"")
    run.cycle(3)
    assert [cycle for cycle, _ in run.cycle_nets()] == [1, 2, 10], "the third is not done"


def test_json_is_written_whole_or_not_at_all(tmp_path):
    run = RunDir(tmp_path)
    run.write_json("cycles.json", [1])
    with pytest.raises(TypeError):
        run.write_json("cycles.json", [object()])
    assert run.read_json("cycles.json", None) == [1]
    assert run.read_json("scores.json", "none yet") == "none yet"
    assert [path.name for path in tmp_path.iterdir()] == ["cycles.json"]
    (tmp_path / "cycles.json").write_text("[1")
    with pytest.raises(RecipeError, match=r"cycles\.json"):
        run.read_json("cycles.json", None)


def test_what_is_unknown_is_null(tmp_path):
    path = RunDir(tmp_path).write_json("cycles.json", [{"recall": float("nan"), "kept": True, "rows": (1.5, np.nan)}])
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == [
        {"recall": None, "kept": True, "rows": [1.5, None]}
    ]


def test_a_run_is_described_so_that_it_can_be_done_again(tmp_path):
    run = RunDir.open(tmp_path / "run", resume=False)
    recipe = config.folder()
    describe_run(run, recipe, "here")
    described = json.loads((run.path / "recipe.json").read_text())
    assert described["recipe"] == recipe.to_dict() and described["data_dir"] == "here"
    assert described["command"] and all(described["versions"][name] for name in ("torch", "numpy", "hovernet_cyclic"))
    describe_run(run, recipe, "moved")
    with pytest.raises(RecipeError, match="another recipe"):
        describe_run(run, config.benchmark(), "here")
    assert json.loads((run.path / "recipe.json").read_text())["data_dir"] == "moved"


def test_a_quiet_log_prints_nothing_and_keeps_its_losses(tmp_path, cpu, capsys):
    log = StageLog(RunDir(tmp_path), quiet=True)
    seen = []
    for step, item in enumerate(log.stage("cycle 1 back end", cpu).steps(iter("abc"), 3, images=4)):
        seen.append(item)
        log.loss("back_end", step, {"np_bce": 1.0, "np_dice": step / 2})
    log.say("not heard")
    log.close()
    assert seen == list("abc") and log.losses == [1.0, 1.5, 2.0]
    assert capsys.readouterr() == ("", "")
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_log_shows_stage_loss_and_throughput(tmp_path, cpu, capsys):
    log = StageLog(RunDir(tmp_path))
    for step, _ in enumerate(log.stage("cycle 1 back end", cpu).steps(iter("ab"), 2, images=4)):
        log.loss("back_end", step, {"np_bce": 0.25})
    log.say("kept")
    log.close()
    printed = capsys.readouterr()
    assert "cycle 1 back end" in printed.err and "loss 0.250" in printed.err and "images/s" in printed.err
    assert "kept" in printed.out


def test_an_interrupted_stage_is_time_spent_all_the_same(tmp_path, cpu, capsys):
    log = StageLog(RunDir(tmp_path))
    steps = log.stage("cycle 1 back end", cpu).steps(iter("abc"), 3, images=4)
    next(steps), next(steps)
    steps.close()
    log.begin("cycle 1 score")
    log.close()
    stages = [event for event in read_history(tmp_path / "history.jsonl") if event["kind"] == "stage"]
    assert [(stage["name"], stage["steps"]) for stage in stages] == [("cycle 1 back end", 1), ("cycle 1 score", 0)]
    assert "cycle 1 back end" not in capsys.readouterr().err, "it is not done"


def test_tensorboard_has_curves_pictures_scores_and_the_recipe(tmp_path, cpu):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = RunDir(tmp_path)
    describe_run(run, config.folder(), "my data")
    log = StageLog(run, quiet=True)
    log.open(run, cpu)
    page = np.random.default_rng(0).integers(0, 255, (30, 80, 3), np.uint8)
    for cycle in (1, 2):
        log.loss("back_end", cycle, {"np_bce": cycle / 4})
        log.picture(cycle, page)
        log.scores(cycle, {"cycle": cycle, "surplus": 10.0 * cycle, "kept": True, "reason": "kept: so"})
    log.close()
    read = event_accumulator.EventAccumulator(str(run.path / "tensorboard"), {"images": 0, "tensors": 0, "scalars": 0})
    tags = read.Reload().Tags()
    assert [(event.step, event.value) for event in read.Scalars("cycle/surplus")] == [(1, 10.0), (2, 20.0)]
    assert [event.value for event in read.Scalars("cycle/kept")] == [1.0, 1.0]
    assert [event.value for event in read.Scalars("back_end/np_bce")] == [0.25, 0.5]
    (tag,) = tags["images"]
    pictures = read.Images(tag)
    assert [(picture.step, picture.height, picture.width) for picture in pictures] == [(1, 30, 80), (2, 30, 80)]
    shown = cv2.imdecode(np.frombuffer(pictures[1].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(shown[..., ::-1], page)
    text = {tag: read.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    assert '"num_cycles": 2' in text["recipe/text_summary"] and "my data" in text["data_dir/text_summary"]
    assert "torch" in text["versions/text_summary"] and text["command/text_summary"]


def test_a_full_disk_leaves_a_folder_that_a_run_can_begin_in(tmp_path, monkeypatch):
    def full(path, *_, **__):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space"):
        describe_run(RunDir.open(tmp_path / "run", resume=False), config.demo(), "data")
    assert not list(RunDir.open(tmp_path / "run", resume=False).path.iterdir())

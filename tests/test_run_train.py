"""run_train.py: bad input is answered with one sentence and exit code 2, and leaves nothing behind."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

import config
import run_train
from dataloader.images import read_rgb, write_png
from hovernet_cyclic.training.run_dir import RunDir
from models.checkpoint import load_checkpoint

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture
def small_recipe(monkeypatch, tiny):
    monkeypatch.setitem(config.RECIPES, "tiny", lambda: tiny(config.folder()))
    return "tiny"


@pytest.fixture
def refusal(capsys, tmp_path, own_data):
    """refusal(*options) -> the one sentence on stderr, after checking that no file or folder was made."""

    def refused(*options, data_dir=own_data, recipe="folder", log_dir=tmp_path / "new" / "run"):
        there = sorted(tmp_path.rglob("*"))
        arguments = [f"--recipe={recipe}", f"--data_dir={data_dir}", f"--log_dir={log_dir}", *options]
        code = run_train.main(arguments if any("--gpu" in option for option in options) else [*arguments, "--gpu=cpu"])
        printed = capsys.readouterr()
        assert code == 2 and printed.out == ""
        assert sorted(tmp_path.rglob("*")) == there, "something was left behind"
        (sentence,) = printed.err.splitlines()
        assert sentence.endswith(".") and "Error" not in sentence
        return sentence

    return refused


def test_an_unknown_recipe(refusal):
    sentence = refusal(recipe="mine")
    assert "--recipe=mine" in sentence and all(name in sentence for name in config.RECIPES)


@pytest.mark.parametrize("seed", ["-1", "ten", "1.5", "", str(2**32), "²"])
def test_a_bad_seed(refusal, seed):
    assert "seed" in refusal(f"--seed={seed}") and "whole number" in refusal(f"--seed={seed}")


@pytest.mark.parametrize("gpu", ["-1", "one", "", "0,", "99", "cuda"])
def test_a_bad_gpu(refusal, gpu):
    assert f"--gpu={gpu}:" in refusal(f"--gpu={gpu}")


@pytest.mark.parametrize("workers", ["-1", "two", ""])
def test_a_bad_number_of_workers(refusal, workers):
    assert f"--num_workers={workers}: give a whole number" in refusal(f"--num_workers={workers}")


def test_a_view_of_no_such_split(refusal):
    assert "--view=foo" in refusal("--view=foo")
    assert "--view=: use train or valid" in refusal("--view=")


def test_a_view_of_valid_data_that_is_not_there(refusal, own_data, tmp_path):
    shutil.rmtree(own_data / "valid")
    assert "valid/images" in refusal("--view=valid")
    assert not list(tmp_path.glob("**/*_view_*"))


def test_a_missing_data_dir(refusal, tmp_path):
    assert "nowhere" in refusal(data_dir=tmp_path / "nowhere")


@pytest.mark.parametrize("recipe", ["folder", "benchmark", "demo", "monusac", "ccrcc", "consep"])
def test_a_data_dir_that_is_a_file(refusal, tmp_path, recipe):
    (tmp_path / "data.zip").write_bytes(b"zip")
    assert "data.zip" in refusal(data_dir=tmp_path / "data.zip", recipe=recipe)


@pytest.mark.parametrize("recipe", ["folder", "benchmark", "monusac", "ccrcc", "consep"])
def test_an_empty_folder(refusal, tmp_path, recipe):
    (tmp_path / "empty").mkdir()
    assert "empty" in refusal(data_dir=tmp_path / "empty", recipe=recipe)


@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_patches_of_one_label_only(refusal, own_data, kind):
    shutil.rmtree(own_data / "patches" / kind)
    assert f"no {kind} ones" in refusal()


def test_no_tiles(refusal, own_data):
    for path in (own_data / "tiles").iterdir():
        path.unlink()
    assert "tiles" in refusal()


def test_data_of_which_everything_is_held_out(refusal, monkeypatch):
    whole = config.folder()
    data = dataclasses.replace(whole.data, valid_fraction=1.0)
    monkeypatch.setitem(config.RECIPES, "held", lambda: dataclasses.replace(whole, data=data))
    assert "left to train on" in refusal(recipe="held")


def make_grey(path):
    write_png(path, read_rgb(path)[..., 0].copy())


def make_16_bit(path):
    cv2.imwrite(str(path), read_rgb(path).astype(np.uint16) * 257)


def make_rgba(path):
    image = read_rgb(path)
    alpha = np.full(image.shape[:2], 128, np.uint8)
    cv2.imwrite(str(path), np.dstack([image, alpha]))


def make_torn(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_empty(path):
    path.write_bytes(b"")


def make_text(path):
    path.write_text("not an image")


def make_label_map(path):
    shutil.copy(path.parents[1] / "labels" / "tile_00.png", path)


SPOILERS = [make_grey, make_16_bit, make_rgba, make_torn, make_empty, make_text]


@pytest.mark.parametrize("spoil", SPOILERS)
@pytest.mark.parametrize("folder", ["tiles", "patches/positive", "patches/negative"])
def test_a_bad_image_anywhere_is_named_before_anything_is_made(refusal, own_data, folder, spoil):
    victim = sorted((own_data / folder).iterdir())[-1]
    spoil(victim)
    assert str(victim) in refusal()


def test_a_label_map_among_the_tiles(refusal, own_data):
    make_label_map(own_data / "tiles" / "tile_01.png")
    sentence = refusal()
    assert "tile_01.png" in sentence and "label map" in sentence


@pytest.mark.parametrize("name", ["m0", "c0"])
def test_a_torn_image_of_the_benchmark(refusal, bench_data, name):
    victim = next(bench_data.glob(f"*/images/{name}.png"))
    make_torn(victim)
    assert victim.name in refusal(data_dir=bench_data, recipe="benchmark")


@pytest.mark.parametrize("spoil", [make_16_bit, make_rgba, make_torn])
@pytest.mark.parametrize(
    ("recipe", "pattern"),
    [("monusac", "MoNuSACGT/*/*/images/*"), ("ccrcc", "ccrcccrop/Train/Images/*"), ("consep", "MyNP/negative/*")],
)
def test_a_bad_image_of_the_papers_sets(refusal, paper_data, recipe, pattern, spoil):
    victim = sorted(paper_data.glob(pattern))[0]
    spoil(victim)
    assert str(victim) in refusal(data_dir=paper_data, recipe=recipe)


@pytest.mark.parametrize("recipe", ["monusac", "ccrcc", "consep"])
def test_the_papers_sets_without_their_patches(refusal, paper_data, recipe):
    shutil.rmtree(paper_data / "MyNP")
    assert "MyNP/positive and MyNP/negative" in refusal(data_dir=paper_data, recipe=recipe)


def test_a_log_dir_that_holds_something(refusal, finished, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").write_text("mine")
    sentence = refusal(log_dir=full)
    assert "not empty" in sentence and "--resume" in sentence
    assert [path.name for path in full.iterdir()] == ["notes.txt"]
    assert "not empty" in refusal(log_dir=finished.path)


def test_nothing_to_resume(refusal, tmp_path):
    assert "no run to resume" in refusal("--resume")
    (tmp_path / "made").mkdir()
    assert "no run to resume" in refusal("--resume", log_dir=tmp_path / "made")


def test_a_log_dir_that_is_or_lies_in_a_file(refusal, tmp_path):
    (tmp_path / "file").write_text("")
    assert "this is a file" in refusal(log_dir=tmp_path / "file")
    assert "--log_dir" in refusal(log_dir=tmp_path / "file" / "run")


def command(own_data, log_dir, *options):
    return [f"--data_dir={own_data}", f"--log_dir={log_dir}", "--gpu=cpu", "--no_scores", *options]


def test_a_run_resumed_with_another_recipe_or_torn_files_is_refused_and_left_as_it_was(
    small_recipe, own_data, tmp_path, refusal, capsys
):
    log_dir = tmp_path / "run"
    assert run_train.main([f"--recipe={small_recipe}", *command(own_data, log_dir)]) == 0
    assert "The network: " in capsys.readouterr().out
    before = {path: path.read_bytes() for path in log_dir.rglob("*") if path.is_file()}
    assert "another recipe" in refusal("--resume", "--seed=11", recipe=small_recipe, log_dir=log_dir)
    assert "another recipe" in refusal("--resume", recipe="folder", log_dir=log_dir)
    assert before == {path: path.read_bytes() for path in log_dir.rglob("*") if path.is_file()}
    for name in ("state.tar", "state.previous.tar"):
        (log_dir / name).write_bytes(before[log_dir / name][:1000])
    assert run_train.main([f"--recipe={small_recipe}", *command(own_data, log_dir, "--resume")]) == 2
    assert "state.tar" in capsys.readouterr().err.splitlines()[-1]
    (log_dir / "recipe.json").write_text("{")
    assert "recipe.json" in refusal("--resume", recipe=small_recipe, log_dir=log_dir)


def test_views_are_written_without_a_run(small_recipe, own_data, tmp_path, capsys):
    for split in ("train", "valid"):
        options = command(own_data, tmp_path / "run", f"--view={split}")
        assert run_train.main([f"--recipe={small_recipe}", *options]) == 0
        path = Path(capsys.readouterr().out.split("The sheet: ")[1].strip())
        assert read_rgb(path).shape[2] == 3 and not (tmp_path / "run").exists()


def test_a_label_map_that_cannot_be_read_spoils_the_scores_alone(small_recipe, own_data, tmp_path, capfd):
    make_torn(own_data / "valid" / "labels" / "valid_00.png")
    options = [option for option in command(own_data, tmp_path / "run") if option != "--no_scores"]
    assert run_train.main([f"--recipe={small_recipe}", *options]) == 1
    err = capfd.readouterr().err
    assert "trained but not scored" in err and "valid_00.png" in err and "Traceback" not in err
    assert (tmp_path / "run" / "net.tar").exists()


def hear_interrupts():
    """A process begun in the background of a script ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_saves_and_says_how_to_go_on(own_data, tmp_path):
    log_dir = tmp_path / "run"
    argv = [sys.executable, str(REPOSITORY / "run_train.py"), "--recipe=folder", *command(own_data, log_dir)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        argv,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=hear_interrupts,
    )
    waited = time.monotonic() + 60
    while not list(log_dir.glob("tensorboard/*")) and process.poll() is None and time.monotonic() < waited:
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "Stopped. What was finished is kept: give --resume to go on."
    assert "Traceback" not in err
    assert load_checkpoint(RunDir.find(log_dir, resume=True).state).cycle == 0, "the first cycle was not finished"


@pytest.fixture
def masks_recipe(monkeypatch, tiny):
    """masks_recipe(supervision, nr_types=None, **of data) -> the name of a tiny recipe that learns from drawn masks."""

    def made(supervision, nr_types=None, **data):
        whole = tiny(config.folder())
        changed = dataclasses.replace(whole.data, **data)
        net = dataclasses.replace(whole.net, nr_types=nr_types)
        back_end = dataclasses.replace(whole.back_end, negatives_per_batch=0)
        recipe = dataclasses.replace(
            whole, data=changed, supervision=supervision, net=net, back_end=back_end, num_cycles=1
        )
        monkeypatch.setitem(config.RECIPES, "drawn", lambda: recipe)
        return "drawn"

    return made


def test_a_run_on_masks_needs_no_patches_and_is_scored(masks_recipe, own_data, tmp_path, capfd):
    shutil.rmtree(own_data / "patches")
    options = [option for option in command(own_data, tmp_path / "run") if option != "--no_scores"]
    assert run_train.main([f"--recipe={masks_recipe('masks')}", *options]) == 0
    out = capfd.readouterr().out
    assert "2 drawn tiles" in out and "valid" in out
    assert (tmp_path / "run" / "net.tar").exists() and (tmp_path / "run" / "scores.json").exists()
    assert f"The report: {tmp_path / 'run' / 'report.html'}" in out
    report = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "valid: the only tile, valid_00" in report and "drawn masks of 2 tiles" in report
    assert run_train.main(["--recipe=drawn", *options, "--resume"]) == 0


def test_a_mixed_run_says_what_it_learns_from(masks_recipe, own_data, tmp_path, capsys):
    recipe = masks_recipe("mixed", annotated_tiles=1)
    assert run_train.main([f"--recipe={recipe}", *command(own_data, tmp_path / "run")]) == 0
    assert "2 tiles, 32 labelled patches, 1 drawn tiles" in capsys.readouterr().out
    assert (tmp_path / "run" / "cycle_1" / "pseudo_masks").is_dir()


@pytest.mark.parametrize("supervision", ["masks", "mixed"])
def test_drawn_masks_that_cannot_be_used_are_named_before_anything_is_made(
    supervision, masks_recipe, refusal, own_data, tmp_path
):
    recipe = masks_recipe(supervision, annotated_tiles=2)
    make_torn(own_data / "labels" / "tile_01.png")
    assert "tile_01.png" in refusal(recipe=recipe)
    (own_data / "labels" / "tile_01.png").unlink()
    assert "tile_01.png has no label map" in refusal(recipe=recipe)
    assert "has 2 tiles" in refusal(recipe=masks_recipe(supervision, annotated_tiles=3))
    assert "'tile_9'" in refusal(recipe=masks_recipe(supervision, annotated_tiles=("tile_9",)))
    assert "tells types" in refusal(recipe=masks_recipe(supervision, 3, annotated_tiles=1))
    shutil.rmtree(own_data / "labels")
    assert f"{own_data} has no label maps" in refusal(recipe=recipe)


def test_types_without_masks_are_refused(masks_recipe, refusal):
    assert "teach no types" in refusal(recipe=masks_recipe("image_level", 3))


def test_a_pretrained_encoder_is_read_before_anything_is_made(
    masks_recipe, refusal, own_data, tmp_path, monkeypatch, finished, capsys
):
    made = config.RECIPES[masks_recipe("masks")]()
    (tmp_path / "weights.tar").write_text("none")
    for path, words in (("none.tar", "no such file"), ("weights.tar", "cannot be loaded")):
        net = dataclasses.replace(made.net, pretrained=str(tmp_path / path))
        monkeypatch.setitem(config.RECIPES, "begun", lambda net=net: dataclasses.replace(made, net=net))
        assert words in refusal(recipe="begun")
    shutil.copy(finished.net, tmp_path / "weights.tar")
    assert run_train.main(["--recipe=begun", *command(own_data, tmp_path / "run")]) == 0
    assert "an encoder in our own layout" in capsys.readouterr().out
    (tmp_path / "weights.tar").unlink()
    assert run_train.main(["--recipe=begun", *command(own_data, tmp_path / "run", "--resume")]) == 0


@pytest.mark.parametrize("supervision", ["masks", "mixed"])
def test_the_view_shows_drawn_tiles(supervision, masks_recipe, own_data, tmp_path, capsys):
    if supervision == "masks":
        shutil.rmtree(own_data / "patches")
    recipe = masks_recipe(supervision, annotated_tiles=1)
    assert run_train.main([f"--recipe={recipe}", *command(own_data, tmp_path / "run", "--view=train")]) == 0
    assert read_rgb(Path(capsys.readouterr().out.split("The sheet: ")[1].strip())).shape[2] == 3

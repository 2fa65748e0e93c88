"""The command lines, frozen: what a user has typed into a script must go on working."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "cv2", "imgaug", "skimage", "scipy", "tensorboard"}

# script and mode -> its options, each as 'name=<value> [default]'. A change here is a change for every user: say so in
# CHANGELOG.md, and keep the old spelling working where that can be done.
FROZEN = {
    ("run_train.py",): [
        "--help",
        "--version",
        "--recipe=<name> [demo]",
        "--data_dir=<dir> [datasets]",
        "--log_dir=<dir>",
        "--gpu=<ids>",
        "--num_workers=<n>",
        "--seed=<n>",
        "--resume",
        "--no_scores",
        "--view=<split>",
        "--report",
        "--check_data",
    ],
    ("run_infer.py",): [
        "--help",
        "--version",
        "--model_path=<file>",
        "--gpu=<ids>",
        "--precision=<name> [auto]",
        "--batch_size=<n>",
        "--views=<n> [1]",
        "--post_proc=<name>",
        "--type_info_path=<file>",
        "--nr_inference_workers=<n> [1]",
        "--nr_post_proc_workers=<n>",
        "--nr_types=<n>",
        "--model_mode=<name>",
    ],
    ("run_infer.py", "tile"): [
        "--help",
        "--input_dir=<dir>",
        "--output_dir=<dir>",
        "--draw_dot",
        "--save_qupath",
        "--save_raw_map",
        "--mem_usage=<x>",
    ],
    ("run_infer.py", "wsi"): [
        "--help",
        "--input_dir=<dir>",
        "--output_dir=<dir>",
        "--cache_path=<dir>",
        "--mpp=<x>",
        "--proc_mag=<n>",
        "--input_mask_dir=<dir>",
        "--whole_slide",
        "--region=<x,y,w,h>",
        "--tile_shape=<px>",
        "--max_memory=<GiB>",
        "--save_thumb",
        "--save_mask",
        "--dry_run",
        "--ambiguous_size=<px>",
        "--chunk_shape=<px>",
    ],
    ("run_eval.py",): [
        "--help",
        "--version",
        "--pred_dir=<dir>",
        "--true_dir=<dir>",
        "--compare=<dir>",
        "--out=<file.json>",
        "--types",
        "--true_type_dir=<dir>",
        "--radius=<px> [12]",
        "--resamples=<n> [2000]",
        "--seed=<n> [0]",
    ],
}
COMMANDS = [pytest.param(command, id=" ".join(command)) for command in FROZEN]


def run(command, *arguments, flags=(), **streams):
    script, *mode = command
    argv = [sys.executable, *flags, str(ROOT / script), *mode, *arguments]
    streams = streams or {"stdout": subprocess.PIPE}
    return subprocess.run(argv, text=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60, **streams)


def options_of(text):
    """The options that a help text explains, each as 'name=<value> [default]'."""
    explained = re.split(r"^ {1,8}(?=-)", text, flags=re.MULTILINE)[1:]
    found = []
    for part in explained:
        name = re.match(r"(?:-\w[, ]+)?(--[\w-]+(?:=\S+)?)", part)
        default = re.search(r"\[default: ([^\]]*)\]", part)
        if name:
            found.append(name[1] + (f" [{default[1]}]" if default else ""))
    return found


def test_options_are_read_off_a_help_text():
    text = (
        "Options:\n  -h --help   Show.\n  --size=<px>  Of a\n     side. [default: 3]\n  --fast  Fast.\n\nNot --this.\n"
    )
    assert options_of(text) == ["--help", "--size=<px> [3]", "--fast"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_frozen_options_and_imports_nothing_heavy(command):
    done = run(command, "--help", flags=["-X", "importtime"])
    assert done.returncode == 0
    assert options_of(done.stdout) == FROZEN[command]
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "docopt" in modules, "importtime no longer prints what this test reads"
    assert not modules & HEAVY


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("arguments", [["--no_such_option"], ["stray", "words"]])
def test_a_wrong_command_line_is_answered_with_the_usage(command, arguments):
    done = run(command, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Usage:" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("script", sorted({command[0] for command in FROZEN}))
def test_version_is_the_packages(script):
    from hovernet_cyclic import __version__

    done = run((script,), "--version")
    assert (done.returncode, done.stdout.split()[-1]) == (0, __version__)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_leaves_is_no_error(command):
    """As `--help | head -1`, without the race between the two: the pipe is closed before the script starts."""
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = run(command, "--help", stdout=write_end)
    finally:
        os.close(write_end)
    assert done.stderr == ""


def test_every_script_is_frozen():
    scripts = {path.name for path in ROOT.glob("run_*.py")}
    assert scripts == {command[0] for command in FROZEN}

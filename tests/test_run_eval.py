import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

import run_eval
from hovernet_cyclic.core.metrics import score

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folders(tmp_path):
    """Three true maps, a shifted prediction (hover_net's layout, with types) and an exact one."""
    generator = np.random.default_rng(0)
    for name in ("true", "types", "shifted/mat", "exact"):
        (tmp_path / name).mkdir(parents=True)
    for index in range(3):
        inst_map = np.zeros((60, 50), np.int32)
        for inst_id in range(1, 8):
            row, column = generator.integers(0, 40, 2)
            inst_map[row : row + 8, column : column + 8] = inst_id
        shifted = np.roll(inst_map, 1, axis=0)
        ids = np.unique(shifted)[1:]
        np.save(tmp_path / "true" / f"im{index}.npy", inst_map)
        np.save(tmp_path / "types" / f"im{index}.npy", (inst_map > 0).astype(int) + (inst_map > 4))
        np.save(tmp_path / "exact" / f"im{index}.npy", inst_map)
        types = {"inst_uid": ids[:, None], "inst_type": 1 + (ids[:, None] > 4)}
        savemat(tmp_path / "shifted" / "mat" / f"im{index}.mat", {"inst_map": shifted, **types})
    return tmp_path


def run(folders, *options, pred="shifted"):
    return run_eval.main([f"--pred_dir={folders / pred}", f"--true_dir={folders / 'true'}", *options])


def test_table_and_json_say_the_same(folders, capsys):
    out = folders / "new" / "scores.json"
    assert run(folders, f"--out={out}") == 0
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    (item,) = report["predictions"]
    for index in range(3):
        true_map = np.load(folders / "true" / f"im{index}.npy")
        wanted = score(true_map, np.roll(true_map, 1, axis=0)).as_dict()
        assert item["images"][f"im{index}"] == wanted
        line = next(line for line in printed.splitlines() if line.startswith(f"im{index}"))
        assert line.split()[1:] == [f"{wanted[name]:.4f}" for name in run_eval.COLUMNS]
    for name in run_eval.COLUMNS:
        assert item["mean"][name] == pytest.approx(np.mean([row[name] for row in item["images"].values()]))
        assert item["low"][name] <= item["mean"][name] <= item["high"][name]
    assert report["without_partner"] == [] and not list(out.parent.glob(".*"))
    for title, meaning in run_eval.COLUMNS.values():
        assert any(line.strip().startswith(title) and meaning in line for line in printed.splitlines())


def test_comparison_is_first_minus_second(folders, capsys):
    out = folders / "scores.json"
    assert run(folders, f"--compare={folders / 'exact'}", f"--out={out}") == 0
    report = json.loads(out.read_text())
    first, second = report["predictions"]
    for name, value in report["difference"]["mean"].items():
        assert value == pytest.approx(first["mean"][name] - second["mean"][name])
    assert report["difference"]["high"]["dice"] < 0
    assert "minus" in capsys.readouterr().out


def test_seed_decides_the_interval(folders):
    lows = []
    for seed in (1, 1, 2, 3, 4):
        run(folders, f"--seed={seed}", "--resamples=3", f"--out={folders / 'scores.json'}")
        lows.append(json.loads((folders / "scores.json").read_text())["predictions"][0]["low"]["dice"])
    assert lows[0] == lows[1]
    assert len(set(lows)) > 1


def test_types(folders, capsys):
    out = folders / "scores.json"
    assert run(folders, "--types", f"--true_type_dir={folders / 'types'}", f"--out={out}") == 0
    types = json.loads(out.read_text())["predictions"][0]["types"]
    assert set(types["by_type"]) == {"1", "2"}
    assert types["accuracy"] == 1.0 and set(types["images"]) == {"im0", "im1", "im2"}
    printed = capsys.readouterr().out
    for name, title in run_eval.WHOLE_TITLES.items():
        low, high = types["low"][name], types["high"][name]
        assert f"{title}: {types[name]:.4f} ({low:.4f} to {high:.4f})" in printed
    row = types["by_type"]["2"]
    cells = [part["by_type"]["2"][name] for name in ("pq", "f1") for part in (types, types["low"], types["high"])]
    line = next(line for line in printed.splitlines() if line.startswith("type 2"))
    assert line.split()[2:] == [str(row["true_nuclei"]), str(row["pred_nuclei"]), *(f"{cell:.4f}" for cell in cells)]


def test_types_are_compared_too(folders, capsys):
    for name in ("typed", "other"):
        (folders / name).mkdir()
    for path in (folders / "true").iterdir():
        inst_map, type_map = np.load(path), np.load(folders / "types" / path.name)
        np.save(folders / "typed" / path.name, np.dstack([inst_map, type_map]))
        np.save(folders / "other" / path.name, np.dstack([inst_map, np.ones_like(type_map) * (inst_map > 0)]))
    out = folders / "scores.json"
    options = [f"--true_type_dir={folders / 'types'}", f"--compare={folders / 'other'}", f"--out={out}"]
    assert run(folders, "--types", *options, pred="typed") == 0
    report = json.loads(out.read_text())
    difference = report["difference"]["types"]
    first, second = (item["types"] for item in report["predictions"])
    assert difference["mean"]["accuracy"] == first["accuracy"] - second["accuracy"] > 0
    assert f"type accuracy: {difference['mean']['accuracy']:+.4f} (" in capsys.readouterr().out


def test_files_without_a_partner_are_listed_and_make_the_exit_code_1(folders, capsys):
    (folders / "exact" / "im1.npy").unlink()
    (folders / "true" / "im2.npy").unlink()
    assert run(folders, pred="exact") == 1
    last = capsys.readouterr().out.strip().splitlines()[-2:]
    assert "im1.npy: no prediction in" in last[0]
    assert "im2.npy: no true label map" in last[1]


def test_one_image_has_no_interval(folders):
    for index in (1, 2):
        (folders / "true" / f"im{index}.npy").unlink()
    out = folders / "scores.json"
    assert run(folders, f"--out={out}") == 1
    assert json.loads(out.read_text())["predictions"][0]["low"]["dice"] is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--radius=far"], "--radius is 'far'"),
        (["--radius=nan"], "--radius is 'nan'"),
        (["--seed=-3"], "--seed is '-3'"),
        (["--seed=" + "9" * 400], "--seed is '999"),
        (["--resamples=1.5"], "--resamples is '1.5'"),
        (["--resamples=0"], "--resamples is '0': give a number from 1 to 100000"),
        (["--resamples=1000000000"], "--resamples is '1000000000'"),
        (["--types"], "tells no types: give --true_type_dir"),
        (["--true_type_dir=x"], "without --types"),
        (["--compare=/nowhere"], "/nowhere does not exist"),
        (["--out=/dev/null/x.json"], "/dev/null/x.json cannot be written"),
    ],
)
def test_bad_options_are_one_sentence_and_exit_2(folders, capsys, options, words):
    assert run(folders, *options) == 2
    error = capsys.readouterr().err.strip()
    assert words in error and "\n" not in error and "Traceback" not in error


def test_a_folder_that_may_not_be_read_is_named(folders, monkeypatch, capsys):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert run(folders) == 2
    assert capsys.readouterr().err.startswith(f"{folders / 'true'} cannot be used (Permission denied): ")


def test_stopped_by_hand(folders, monkeypatch, capsys):
    def stop(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_eval, "evaluate", stop)
    assert run(folders, f"--out={folders / 'scores.json'}") == 130
    assert capsys.readouterr().err == "Stopped. Nothing is written.\n" and not (folders / "scores.json").exists()


def test_unlike_shapes_name_both_files(folders, capsys):
    np.save(folders / "exact" / "im1.npy", np.ones((5, 6), int))
    assert run(folders, pred="exact") == 2
    error = capsys.readouterr().err
    assert str(folders / "exact" / "im1.npy") in error and str(folders / "true" / "im1.npy") in error
    assert "60 x 50" in error and "5 x 6" in error


def test_no_common_name(folders, capsys):
    for path in (folders / "exact").iterdir():
        path.rename(path.with_name(f"pred_{path.name}"))
    assert run(folders, pred="exact") == 2
    assert "'im0'" in capsys.readouterr().err


def test_a_wrong_command_line_shows_the_usage_and_exits_2(capsys):
    assert run_eval.main(["--pred_dir=x"]) == 2
    assert "Usage:" in capsys.readouterr().err


def test_help_imports_no_arrays():
    code = "import sys, run_eval\ntry: run_eval.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('numpy', 'cv2', 'scipy', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--true_dir" in done.stdout and done.stdout.strip().endswith("[]")

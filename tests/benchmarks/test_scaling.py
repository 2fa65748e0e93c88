"""The benchmark of several processes."""

import json
import sys

import pytest

from benchmarks import scaling


def test_a_table_is_printed_and_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "SIZES", scaling.DemoSizes(8, 8, 1, 1, 1, 48, 128))
    out = tmp_path / "scaling.json"
    argv = ["scaling.py", "--processes", "1", "--workers", "0", "--steps=2", "--gpu=cpu", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", argv)
    assert scaling.main() == 0
    front, back = json.loads(out.read_text())["rows"]
    assert (front["end"], back["end"]) == ("front end", "back end")
    for row in (front, back):
        assert row["images_per_s"] > 0 and 0 <= row["waiting"] < 1 and row["all_reduce"] == 0 and 0 < row["peak"] < 1.5
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[2].startswith("| front end | 1 | 0 |") and "| 1.00 |" in lines[3]


def test_rates_and_shares_by_hand():
    clock = scaling.Clock()
    clock.ends = [0.5 * step for step in range(scaling.WARM + 4)]
    clock.waits = [9.0] * scaling.WARM + [0.1] * 4
    found = clock.found(batch_size=6)
    assert found["images_per_s"] == pytest.approx(12) and found["seconds_per_step"] == pytest.approx(0.5)
    assert found["waiting"] == pytest.approx(0.2)


def test_of_several_processes_the_slowest_counts():
    one = {"images_per_s": 4.0, "seconds_per_step": 1.0, "waiting": 0.1, "all_reduce": 0.3, "gflop": 50.0}
    other = {**one, "images_per_s": 3.0, "seconds_per_step": 2.0, "waiting": 0.3}
    (row,) = scaling.rows_of({"dtype": "float32", "ends": [{"back end": one}, {"back end": other}]}, 2, 0)
    assert row["images_per_s"] == 3 and row["waiting"] == pytest.approx(0.2) and row["peak"] > 0
    alone = {**row, "processes": 1, "images_per_s": 2.0}
    assert "| 1.50 |" in scaling.line(row, [alone, row])

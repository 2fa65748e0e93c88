import json
import sys

from benchmarks import metrics_speed


def test_table_and_loops_agree_and_the_report_is_written(tmp_path, capsys, monkeypatch):
    out = tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", ["metrics_speed.py", "--side=180", "--repeat=1", f"--out={out}"])
    assert metrics_speed.main() == 0
    report = json.loads(out.read_text())
    assert report["true_nuclei"] == 16 >= report["pred_nuclei"] > 0
    assert report["largest_relative_difference"] < 1e-12
    assert "ratio" in capsys.readouterr().out

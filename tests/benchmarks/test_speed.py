"""The benchmark of speed: the reference is restated faithfully, the floor is counted right, and both ways run."""

import json

import numpy as np
import pytest
import torch

from benchmarks import reference_pipeline as reference
from benchmarks import speed
from hovernet_cyclic.core.label_maps import extract_nuclei
from models.hovernet.net_desc import HoVerNet
from models.hovernet.post_proc import segment


@pytest.fixture(scope="module")
def drawn():
    return speed.mosaic(400)


def test_the_restated_post_processing_finds_what_the_variant_hovernet_finds(drawn):
    _, raw = drawn
    inst_map = reference.instances(np.dstack([raw.np_prob, raw.hv_map]))
    np.testing.assert_array_equal(inst_map, segment(raw, "hovernet"))
    described, nuclei = reference.describe(inst_map), extract_nuclei(inst_map)
    assert list(described) == list(nuclei) and len(nuclei) > 20
    for inst_id, nucleus in nuclei.items():
        found = described[inst_id]
        assert found["bbox"].ravel().tolist() == list(nucleus.bbox)
        assert found["centroid"].tolist() == list(nucleus.centroid)
        np.testing.assert_array_equal(found["contour"], nucleus.contour)


def test_windows_of_the_reference_cover_the_image_once():
    class Centre(torch.nn.Module):
        """Answers with the centre of its input: logits whose softmax is told by red, and green and blue as h and v."""

        def forward(self, images):
            part = images[:, :, 46:-46, 46:-46] / 255
            return type("Output", (), {"np": torch.stack([-part[:, 0], part[:, 0]], 1), "hv": part[:, 1:]})

    image = np.random.default_rng(0).integers(0, 256, (170, 330, 3), dtype=np.uint8)
    maps, done, windows = reference.network_maps(Centre(), image, 4)
    assert (done, windows) == (6, 6) and maps.shape == (170, 330, 3)
    np.testing.assert_allclose(maps[..., 1:], image[..., 1:] / 255, atol=1e-6)
    np.testing.assert_allclose(maps[..., 0], 1 / (1 + np.exp(-2 * (image[..., 0] / 255))), atol=1e-6)
    assert reference.network_maps(Centre(), image, 4, 1)[1] == 1


def test_the_floor_counts_each_pixel_once(monkeypatch):
    monkeypatch.setattr(speed, "matrix_rate", lambda _: 100.0)
    counted = speed.floor("small", torch.float32)["gflop_per_megapixel"]
    monkeypatch.setattr(speed, "SAMPLE", 512)
    assert speed.floor("small", torch.float32)["gflop_per_megapixel"] == pytest.approx(
        counted, rel=2e-2
    )  # borders count a little
    # The stem alone, by hand: 3 x 3 x 3 -> 32 at half the side, two operations each.
    net = HoVerNet("small")
    assert net.stem.conv.weight.numel() * 2 / 4 / 1e3 < counted < 200


def test_each_row_of_ours_is_measured_against_the_reference_of_its_size(monkeypatch, tmp_path, capsys):
    stages = ("read", "network", "post_proc", "write", "all")
    base = {"pipeline": "reference", "net": "fast", "precision": "float32", "nuclei": 5, "peak_rss_mib": 1.0}

    def work_done(work, *arguments):
        if work is speed.time_reference:
            return base | {"megapixels": arguments[0], "seconds": dict.fromkeys(stages, 100.0 * arguments[0])}
        if work is speed.time_ours:
            mode, megapixels, _ = arguments
            took = dict.fromkeys(stages, {"small": 2.0, "fast": 20.0}[mode]) | {"post_proc": 10.0}
            ours = {"pipeline": "ours", "net": mode, "precision": "bfloat16", "megapixels": megapixels}
            return base | ours | {"seconds": took}
        mode, dtype = arguments
        assert work is speed.floor and dtype == torch.bfloat16
        return {"gflop_per_megapixel": {"small": 50.0, "fast": 500.0}[mode], "gflop_per_s": 100.0}

    monkeypatch.setattr(speed, "apart", work_done)
    out = tmp_path / "speed.json"
    monkeypatch.setattr("sys.argv", ["speed", "--net", "small", "fast", "--megapixels", "1", "4", "--out", str(out)])
    assert speed.main() == 0
    report = json.loads(out.read_text())
    rows = {(row["pipeline"], row["net"], row["megapixels"]): row for row in report["rows"]}
    assert len(rows) == 6 and report["options"]["megapixels"] == [1, 4]
    assert rows["ours", "small", 1]["ratio"] == {"all": 50, "network": 50, "post_proc": 10}
    assert rows["ours", "small", 4]["ratio"] == {"all": 200, "network": 200, "post_proc": 40}
    assert rows["ours", "fast", 4]["ratio"]["all"] == 20
    assert rows["ours", "small", 4]["floor"]["seconds"] == 2 and rows["ours", "fast", 1]["floor"]["seconds"] == 5
    header, _, *lines = capsys.readouterr().out.splitlines()
    cells = [dict(zip(header.split(" | "), line.split(" | "), strict=True)) for line in lines]
    assert [cell["ratio"] for cell in cells] == ["1", "50.0", "5.0", "1", "200.0", "20.0"]
    assert [cell["times floor"] for cell in cells] == ["", "4.00", "4.00", "", "1.00", "1.00"]


def test_ours_and_the_reference_are_timed(monkeypatch):
    monkeypatch.setattr(speed, "files_of", lambda folder, _mpx, tiles, files=speed.files_of: files(folder, 0.04, tiles))
    monkeypatch.setattr(speed, "network", lambda _mode: HoVerNet("small").eval())
    monkeypatch.setattr(reference, "ANSWER", 192)
    options = speed.Options(("small",), (1,), 2, "fp32", 2, 1, 0)
    ours, theirs = speed.time_ours("small", 1, options), speed.time_reference(1, options)
    assert set(ours["seconds"]) == set(theirs["seconds"]) == {"read", "network", "post_proc", "write", "all"}
    assert ours["nuclei"] > 0 and ours["precision"] == "float32" and theirs["windows"] == 4
    assert theirs["seconds"]["all"] == pytest.approx(sum(theirs["seconds"].values()) - theirs["seconds"]["all"])
    row = ours | {"floor": {"seconds": 0.1}, "ratio": {"all": 2.0, "post_proc": 3.0}}
    columns = speed.HEADER.splitlines()[0].count("|")
    assert speed.line(row).count("|") == speed.line(theirs).count("|") == columns

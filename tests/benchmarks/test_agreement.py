"""What the comparison of fast and plain inference counts."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch

from benchmarks import agreement
from dataloader.images import write_png
from hovernet_cyclic.core.types import RawMaps
from models.checkpoint import LoadedNetwork
from models.hovernet.net_desc import HoVerNet
from models.hovernet.targets import hover_targets


def maps_of(*boxes, side=100):
    """The maps of a network that is sure of square nuclei: (top, left, side) each."""
    inst_map = np.zeros((side, side), np.int32)
    for number, (top, left, length) in enumerate(boxes, 1):
        inst_map[top : top + length, left : left + length] = number
    targets = hover_targets(inst_map, inst_map.shape)
    return RawMaps(targets.np_map.astype(np.float32), targets.hv_map)


@pytest.fixture
def decided():
    """An untrained network that is not undecided everywhere."""
    torch.manual_seed(3)
    net = HoVerNet("small").eval()
    with torch.no_grad():
        net.decoder["np"].head.weight *= 20
        net.decoder["hv"].head.weight *= 5
    return LoadedNetwork(net, "small", None, None)


def test_each_nucleus_of_the_plain_way_has_its_best_partner():
    plain = maps_of((10, 10, 20), (10, 60, 20), (60, 10, 20))
    other = maps_of((10, 10, 20), (10, 60, 15))  # one as it was, one smaller, one gone
    found = agreement.difference(plain, other, 10)
    assert sorted(found.iou) == pytest.approx([0, 225 / 400, 1])
    assert found.nuclei == 2
    assert found.pixels == pytest.approx((400 - 225 + 400) / 100**2) and found.most == 1
    assert agreement.difference(plain, maps_of(), 10).iou.tolist() == [0, 0, 0]


def test_rows_hold_the_nuclei_of_all_images_as_one():
    one = agreement.Difference(np.array([1.0, 0.95, 0.5]), 2, 0.1, 0.2)
    two = agreement.Difference(np.array([1.0]), 3, 0.3, 0.9)
    row = agreement.row_of("some way", [one, two])
    assert row == {
        "way": "some way",
        "nuclei": [4, 5],
        "iou_above_0.99": 0.5,
        "iou_above_0.9": 0.75,
        "pixels": pytest.approx(0.2),
        "most": 0.9,
    }
    assert agreement.render([row]).splitlines()[-1] == "| some way | 4, 5 | 50.00% | 75.00% | 20.00% | 0.9 |"
    empty = agreement.row_of("some way", [agreement.Difference(np.zeros(0), 0, 0.0, 0.0)])
    assert empty["nuclei"] == [0, 0] and empty["iou_above_0.99"] is None
    assert agreement.render([empty]).splitlines()[-1] == "| some way | 0, 0 | none | none | 0.00% | 0 |"


def test_each_way_asks_as_its_name_says(decided):
    ways = list(agreement.all_ways(decided).values())
    assert [way._frozen is not None for way in ways] == [False, True, True, True, False, True]
    assert [way.dtype == torch.bfloat16 for way in ways] == [False, False, False, False, True, True]
    assert [way._frozen.dtype for way in ways if way._frozen] == [torch.float32] * 3 + [torch.bfloat16]
    assert [way.margin for way in ways] == [72, 72, 72, 32, 72, 72]
    assert [way.cell((260, 260))[0] for way in ways] == [264, 264, 64, 192, 264, 264]


def test_frozen_and_small_patches_change_nothing_and_the_lattice_of_training_does(decided, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (260, 260, 3), dtype=np.uint8)
    path = tmp_path / "image.png"
    write_png(path, cv2.GaussianBlur(noise, (0, 0), 3))
    frozen, small, lattice, _, bfloat16 = agreement.measure(decided, [path])
    for exact in (frozen, small):
        assert exact["nuclei"][0] == exact["nuclei"][1] > 10 and exact["iou_above_0.99"] == 1 and exact["most"] < 1e-4
    assert small["most"] <= lattice["most"] and lattice["pixels"] > 0
    assert lattice["iou_above_0.9"] < 1 and frozen["most"] < bfloat16["most"]


def test_the_command_writes_its_table(decided, tmp_path, monkeypatch, capsys):
    write_png(tmp_path / "image.png", np.full((40, 40, 3), 200, np.uint8))
    monkeypatch.setattr(agreement, "load_network", lambda path: decided)
    arguments = ["agreement", "--model_path=net.tar", f"--input_dir={tmp_path}", f"--out={tmp_path / 'out.json'}"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert agreement.main() == 0
    assert capsys.readouterr().out.count("\n") == 7
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["images"] == ["image.png"] and len(report["rows"]) == 5
    monkeypatch.setattr(sys, "argv", ["agreement", "--model_path=net.tar", "--input_dir=nowhere"])
    assert agreement.main() == 2
    assert "nowhere does not exist" in capsys.readouterr().err

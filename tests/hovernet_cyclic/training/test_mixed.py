"""The cycle with a few drawn tiles: their masks reach the back end, and no other's."""

import dataclasses

import numpy as np
import pytest

import config
from dataloader.datasets import open_source
from dataloader.label_files import read_label_map
from hovernet_cyclic.training import cyclic
from hovernet_cyclic.training.mixed import run_mixed_cycles
from hovernet_cyclic.training.run_dir import RunDir
from models.checkpoint import load_checkpoint


@pytest.fixture
def mixed(tiny):
    made = tiny(config.benchmark_mixed())
    return dataclasses.replace(made, data=dataclasses.replace(made.data, annotated_tiles=("c0",)), num_cycles=1)


@pytest.fixture
def run_mixed(mixed, bench_data, cpu):
    def run(log_dir):
        splits = open_source(mixed.data, str(bench_data))
        folder = RunDir.open(log_dir, False)
        run_mixed_cycles(mixed, splits.train, splits.train_annotated, folder, cpu, quiet=True)
        return folder

    return run


def test_the_drawn_tile_stands_in_place_of_its_pseudo_mask(run_mixed, bench_data, tmp_path, monkeypatch):
    seen = []
    honest = cyclic.TileSampler
    monkeypatch.setattr(cyclic, "TileSampler", lambda *arguments: seen.append(arguments) or honest(*arguments))
    run = run_mixed(tmp_path / "run")
    assert seen and run.net.exists()
    for tiles, _, _, _, _, drawn, cutouts in seen:
        assert len(tiles) == len(cutouts) == 2 and len(drawn) == 1, "m0 and m1 by pseudo masks, c0 as drawn"
        expected = read_label_map(bench_data / "consep" / "labels" / "c0.png").inst_map
        np.testing.assert_array_equal(drawn[0].inst_map, expected)
        assert drawn[0].trusted.all() and not all(tile.trusted.all() for tile in tiles)


def test_no_other_label_is_needed(run_mixed, bench_data, tmp_path):
    for path in bench_data.glob("monuseg/labels/*.png"):
        path.write_bytes(b"never to be read")
    assert run_mixed(tmp_path / "run").net.exists()


def test_the_masks_are_felt(run_mixed, bench_data, tmp_path):
    one = load_checkpoint(run_mixed(tmp_path / "one").net).teacher
    label = bench_data / "consep" / "labels" / "c0.png"
    label.write_bytes((bench_data / "monuseg" / "labels" / "m1.png").read_bytes())
    other = load_checkpoint(run_mixed(tmp_path / "other").net).teacher
    assert any(not value.equal(other[name]) for name, value in one.items())

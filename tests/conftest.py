"""Data and a run so small that every test can afford them."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
from hypothesis import settings

# Several test processes share the cores; it must stand before torch is loaded.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine takes its time: how long an example takes says nothing about whether the code is right.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

PATCH, TILE = 48, 128  # sides, px
# (images, labels, stem) of all drawn tiles
DRAWN = (
    ("tiles", "labels", "tile_00"),
    ("tiles", "labels", "tile_01"),
    ("valid/images", "valid/labels", "valid_00"),
    ("test/images", "test/labels", "test_00"),
)


@pytest.fixture(scope="session")
def drawn_once(tmp_path_factory):
    from dataloader.datasets.demo import DemoSizes, write_demo_data

    folder = tmp_path_factory.mktemp("drawn") / "data"
    write_demo_data(folder, seed=3, sizes=DemoSizes(16, 16, 2, 1, 1, PATCH, TILE))
    return folder


@pytest.fixture
def own_data(drawn_once, tmp_path):
    """A copy of the drawn data, in the layout of own folders, that the test may change."""
    return shutil.copytree(drawn_once, tmp_path / "data")


@pytest.fixture
def bench_data(drawn_once, tmp_path):
    """The same images as the benchmark lays them out, with label maps of the training images too."""
    root = tmp_path / "bench"
    tiles, labels = drawn_once / "tiles", drawn_once / "labels"
    members = {"monuseg": {"m0": "train", "m1": "train", "m2": "valid", "m3": "test"}, "consep": {"c0": "train"}}
    for source, names in members.items():
        for kind in ("images", "labels"):
            (root / source / kind).mkdir(parents=True)
        for name in names:
            tile = f"tile_0{int(name[1]) % 2}.png"
            shutil.copy(tiles / tile, root / source / "images" / f"{name}.png")
            shutil.copy(labels / tile, root / source / "labels" / f"{name}.png")
        rows = [f"{name},{split}" for name, split in names.items()]
        (root / source / "splits.csv").write_text("\n".join(["name,split", *rows]) + "\n")
    rows = [
        f"{source},{name},{PATCH},{y},{y},{label},tissue"
        for source, name in (("monuseg", "m0"), ("monuseg", "m1"), ("consep", "c0"))
        for y, label in ((0, "positive"), (40, "positive"), (72, "negative"))
    ]
    (root / "patch_labels.csv").write_text("\n".join(["source,name,size,y,x,label,content", *rows]) + "\n")
    return root


@pytest.fixture(scope="session")
def paper_once(drawn_once, tmp_path_factory):
    """The drawn images in the folders of the paper's repositories, as those write them: not through our own writers."""
    import cv2
    from scipy.io import savemat

    root = tmp_path_factory.mktemp("paper") / "datasets"
    pairs = [(drawn_once / f"{a}/{c}.png", drawn_once / f"{b}/{c}.png") for a, b, c in DRAWN]
    for kind in ("positive", "negative"):
        shutil.copytree(drawn_once / "patches" / kind, root / "MyNP" / kind)
    kumar = ("TCGA-A7-A13E-01Z-00-DX1", "TCGA-HE-7128-01Z-00-DX1", "TCGA-E2-A14V-01Z-00-DX1", "TCGA-KB-A93J-01A-01-TS1")
    for name, (image, label) in zip(kumar, pairs, strict=True):
        folder = root / "MoNuSACGT" / "stage1_train" / name
        for part in ("images", "masks"):
            (folder / part).mkdir(parents=True)
        shutil.copy(image, folder / "images" / f"{name}.png")
        inst_map = cv2.imread(str(label), cv2.IMREAD_UNCHANGED)
        for inst_id in np.unique(inst_map)[1:]:
            cv2.imwrite(str(folder / "masks" / f"{inst_id}.png"), np.uint8(inst_map == inst_id) * 255)
    names = {"ccrcccrop": ("instance_map", "class_map"), "consepcrop": ("inst_map", "type_map")}
    for layout, (instances, types) in names.items():
        for split, (image, label) in zip(("Train", "Train", "Valid", "Test"), pairs, strict=True):
            for part in ("Images", "Labels"):
                (root / layout / split / part).mkdir(parents=True, exist_ok=True)
            shutil.copy(image, root / layout / split / "Images")
            inst_map = cv2.imread(str(label), cv2.IMREAD_UNCHANGED).astype(np.int32)
            type_map = np.where(inst_map, inst_map % 4 + 1, 0)
            savemat(root / layout / split / "Labels" / f"{image.stem}.mat", {instances: inst_map, types: type_map})
    return root


@pytest.fixture
def paper_data(paper_once, tmp_path):
    """A copy of the paper's folders that the test may change."""
    return shutil.copytree(paper_once, tmp_path / "datasets")


@pytest.fixture(scope="session")
def tiny():
    """recipe -> the same recipe with as little work as can be: two steps a stage, tiny batches and patches."""

    def shrunk(recipe, **changes):
        output = {"small": 64, "fast": 4, "original": 8}[recipe.net.mode]
        front_end = dataclasses.replace(recipe.front_end, steps_first=2, steps_later=2, batch_size=4)
        back_end = dataclasses.replace(
            recipe.back_end,
            steps=2,
            steps_later=4,
            batch_size=2,
            negatives_per_batch=1,
            widen_rounds=1,
            consistency_weight=0.1,  # no recipe's, but the code that does most
            patch_shape=(output, output),
        )
        changes = {"pseudo_masks": dataclasses.replace(recipe.pseudo_masks, teacher_views=1), **changes}
        return dataclasses.replace(recipe, front_end=front_end, back_end=back_end, num_cycles=2, **changes)

    return shrunk


@pytest.fixture(scope="session")
def cpu():
    """The CPU in float32 with one thread: sums are then added in one order, so that runs can be compared exactly."""
    import torch

    from models.devices import Device

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Device(torch.device("cpu"), torch.float32)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def train(tiny, cpu):
    """train(data_dir, log_dir, reader='folder', resume=False, **changes of the tiny recipe) -> RunDir of the run."""
    from config import RECIPES
    from dataloader.datasets import open_source
    from hovernet_cyclic.training.cyclic import run_cycles
    from hovernet_cyclic.training.run_dir import RunDir

    def trained(data_dir, log_dir, reader="folder", resume=False, **changes):
        recipe = dataclasses.replace(tiny(RECIPES[reader]()), **changes)
        run = RunDir.open(log_dir, resume)
        run_cycles(recipe, open_source(recipe.data, str(data_dir)).train, run, cpu, quiet=True)
        return run

    return trained


@pytest.fixture(scope="session")
def finished(train, drawn_once, tmp_path_factory):
    """The RunDir of two cycles on the drawn data: to be read, not changed."""
    return train(drawn_once, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="session")
def product():
    """RunDir -> {name: array} of all that a run made: weights of every network, pseudo masks, scores, what was kept."""
    from models.checkpoint import load_checkpoint

    def flat(value, name):
        if isinstance(value, dict):
            return {k: v for key, item in value.items() for k, v in flat(item, f"{name}.{key}").items()}
        return {name: np.asarray(value)}

    def product_of(run):
        arrays = {}
        for path in sorted(set(run.path.rglob("*.tar")) - {run.previous_state}):
            stored = load_checkpoint(path)
            for part in ("classifier", "student", "teacher", "rng"):
                weights = getattr(stored, part) or {}
                arrays |= flat(weights, f"{path.relative_to(run.path)}:{part}")
        for path in sorted(run.path.rglob("*.npz")):
            with np.load(path) as mask:
                arrays |= {f"{path.relative_to(run.path)}:{key}": mask[key] for key in mask.files}
        for row in run.read_json("cycles.json", []):
            arrays |= {
                f"cycle {row['cycle']}:{key}": np.asarray(row[key]) for key in ("surplus", "nuclei", "kept", "reason")
            }
        return arrays

    return product_of

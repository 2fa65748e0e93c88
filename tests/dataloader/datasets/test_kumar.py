"""MoNuSeg and Kumar's set as published: TIFF images, outlines in XML."""

import shutil

import numpy as np
import pytest
import tifffile

from dataloader.datasets import open_source
from dataloader.images import write_png
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings

KUMAR, MONUSEG = DataSettings("kumar"), DataSettings("monuseg")
TRAIN, SAME, OTHER, LATER = (
    "TCGA-18-5592-01Z-00-DX1",
    "TCGA-E2-A14V-01Z-00-DX1",
    "TCGA-DK-A2I6-01A-01-TS1",
    "TCGA-F9-A8NY-01Z-00-DX1",
)
SQUARE = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in ((1.5, 0.5), (4.5, 0.5), (4.5, 3.5), (1.5, 3.5)))
REGION = f"<Region><Vertices>{SQUARE}</Vertices></Region>"
OUTLINES = f"<Annotations><Annotation><Regions>{REGION}</Regions></Annotation></Annotations>"
INST_MAP = np.zeros((8, 9), np.int32)
INST_MAP[1:4, 2:5] = 1


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 9, 3), dtype=np.uint8)


def write_pair(images, labels, name, seed):
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(images / f"{name}.tif", picture(seed), photometric="rgb")
    (labels / f"{name}.xml").write_text(OUTLINES)


@pytest.fixture(params=[False, True], ids=["plain", "nested"])
def data_dir(request, tmp_path):
    """The two archives, unpacked; nested: each in a folder of its own name, as some unpackers do."""

    def root_of(name):
        return tmp_path / name / name if request.param else tmp_path / name

    training, test = root_of("MoNuSeg 2018 Training Data"), root_of("MoNuSegTestData")
    for seed, name in enumerate((TRAIN, SAME, OTHER)):
        write_pair(training / "Tissue Images", training / "Annotations", name, seed)
    write_pair(test, test, "TCGA-2Z-A9J9-01A-01-TS1", 7)
    for kind in ("positive", "negative"):
        write_png(tmp_path / "MyNP" / kind / "a.png", picture(9))
    return tmp_path


def test_kumars_split(data_dir):
    splits = open_source(KUMAR, str(data_dir))
    assert list(splits.train.tile_ids) == [TRAIN]
    np.testing.assert_array_equal(splits.train.read_tile(0).image, picture(0))
    names = {split: list(source.tile_ids) for split, source in splits.test.items()}
    assert names == {"same_organ": [SAME], "different_organ": [OTHER]} and splits.valid is None
    np.testing.assert_array_equal(splits.test["same_organ"].annotation(0).inst_map, INST_MAP)


def test_monusegs_archives(data_dir):
    splits = open_source(MONUSEG, str(data_dir))
    assert sorted(splits.train.tile_ids) == sorted((TRAIN, SAME, OTHER))
    assert list(splits.test) == ["test"]
    test = splits.test["test"]
    np.testing.assert_array_equal(test.read_tile(0).image, picture(7))
    np.testing.assert_array_equal(test.annotation(0).inst_map, INST_MAP)


def test_outlines_are_opened_by_annotation_alone(data_dir):
    for path in data_dir.rglob("*.xml"):
        path.write_text("never to be read")
    splits = open_source(MONUSEG, str(data_dir))
    assert splits.train.read_tile(0).image.shape == (8, 9, 3) and len(splits.train.patch_labels) == 2
    with pytest.raises(DatasetError, match="no XML"):
        splits.train_annotated.annotation(0)
    for path in data_dir.rglob("Annotations"):
        shutil.rmtree(path)
    assert open_source(MONUSEG, str(data_dir)).train_annotated is None


def test_another_image_than_the_thirty_is_refused_by_kumar_alone(data_dir):
    images = next(data_dir.rglob("Tissue Images"))
    write_pair(images, images.parent / "Annotations", LATER, 5)
    with pytest.raises(DatasetError, match="none of Kumar's 30 images"):
        open_source(KUMAR, str(data_dir))
    assert LATER in open_source(MONUSEG, str(data_dir)).train.tile_ids


def test_without_its_test_archive_monuseg_has_no_test_split(data_dir):
    shutil.rmtree(data_dir / "MoNuSegTestData")
    assert open_source(MONUSEG, str(data_dir)).test == {}
    shutil.rmtree(data_dir / "MoNuSeg 2018 Training Data")
    (data_dir / "MoNuSeg 2018 Training Data.zip").write_bytes(b"PK")
    with pytest.raises(DatasetError, match=r"unpack MoNuSeg 2018 Training Data\.zip"):
        open_source(MONUSEG, str(data_dir))

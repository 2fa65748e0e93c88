"""The paper's MoNuSAC folders and the MoNuSAC of 2020, each in its makers' true layout."""

import csv
import os
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from dataloader.datasets import open_source
from dataloader.datasets.kumar import SPLIT_OF, TRAIN
from dataloader.datasets.monusac import TYPES_2020
from dataloader.images import write_png
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings

REAL = Path(os.environ.get("HOVERNET_CYCLIC_DATA", Path(__file__).parents[4] / "shared" / "data"))
SETTINGS = DataSettings("monusac")
BREAST, STOMACH, LIVER = "TCGA-A7-A13E-01Z-00-DX1", "TCGA-KB-A93J-01A-01-TS1", "TCGA-21-5784-01Z-00-DX1"
SHAPE = (12, 16)
INST_MAP = np.zeros(SHAPE, np.int32)
INST_MAP[1:4, 2:6], INST_MAP[6:11, 6:13] = 1, 2


def picture(seed, shape=SHAPE):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8)


def add_patches(root):
    for number in range(3):
        write_png(root / "MyNP" / "positive" / f"TCGA-A7-A13E-{number}.png", picture(number, (24, 24)))
        write_png(root / "MyNP" / "negative" / f"p{number}__1.png", picture(9 + number, (24, 24)))
    return root


@pytest.fixture
def whole(tmp_path):
    root = add_patches(tmp_path / "datasets")
    for seed, name in enumerate((BREAST, LIVER, STOMACH)):
        folder = root / "MoNuSACGT" / "stage1_train" / name
        write_png(folder / "images" / f"{name}.png", picture(seed))
        for k in (1, 2):
            write_png(folder / "masks" / f"mask_{k}.png", np.uint8(k == INST_MAP) * 255)
    return root


@pytest.fixture
def crops(tmp_path):
    root = add_patches(tmp_path / "datasets")
    for seed, name in enumerate((f"{BREAST}_crop_0", f"{BREAST}_crop_15", f"{STOMACH}_crop_7")):
        write_png(root / "MoNuSACCROP" / "images" / f"{name}.png", picture(seed))
        write_png(root / "MoNuSACCROP" / "masks" / f"{name}.png", INST_MAP.astype(np.uint16))
    return root


def refusal(root, settings=SETTINGS, with_patches=True):
    with pytest.raises(DatasetError) as caught:
        open_source(settings, str(root), with_patches)
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


# --- the split --------------------------------------------------------------------------------------------------------


def test_kumars_split_is_sixteen_eight_and_six():
    assert Counter(SPLIT_OF.values()) == {TRAIN: 16, "same_organ": 8, "different_organ": 6}


@pytest.mark.skipif(not (REAL / "monuseg").is_dir(), reason="the benchmark's images are not at hand")
def test_kumars_split_agrees_with_the_organs_of_the_open_data():
    with (REAL / "monuseg" / "splits.csv").open() as table:
        organs = {row["name"]: row["organ"].split(" ")[0] for row in csv.DictReader(table) if row["split"] != "test"}
    assert set(organs) < set(SPLIT_OF) and set(SPLIT_OF) - set(organs) == {"TCGA-E2-A14V-01Z-00-DX1"}
    counts = Counter((split, organs.get(name, "breast")) for name, split in SPLIT_OF.items())
    four = dict.fromkeys(("breast", "liver", "kidney", "prostate"), 4)
    assert {organ: n for (split, organ), n in counts.items() if split == TRAIN} == four
    assert {organ: n for (split, organ), n in counts.items() if split == "same_organ"} == dict.fromkeys(four, 2)
    others = dict.fromkeys(("bladder", "colon", "stomach"), 2)
    assert {organ: n for (split, organ), n in counts.items() if split == "different_organ"} == others


# --- MoNuSACGT --------------------------------------------------------------------------------------------------------


def test_whole_images_splits_patches_and_values(whole):
    splits = open_source(SETTINGS, str(whole))
    train = splits.train
    assert list(train.tile_ids) == [BREAST] and not hasattr(train, "annotation")
    np.testing.assert_array_equal(train.read_tile(0).image, picture(0))
    np.testing.assert_array_equal(train.patch_labels, [[1]] * 3 + [[0]] * 3)
    assert list(train.patch_groups) == ["TCGA-A7-A13E"] * 3 + ["p0", "p1", "p2"]
    assert list(train.patch_shapes) == [(24, 24)] * 6
    np.testing.assert_array_equal(train.read_patch(4).image, picture(10, (24, 24)))
    assert splits.valid is None and list(splits.test) == ["same_organ", "different_organ"]
    assert list(splits.test["same_organ"].tile_ids) == [LIVER]
    annotation = splits.test["different_organ"].annotation(0)
    assert annotation.tile_id == STOMACH and annotation.type_map is None
    np.testing.assert_array_equal(annotation.inst_map, INST_MAP)
    np.testing.assert_array_equal(splits.train_annotated.annotation(0).inst_map, INST_MAP)


def test_opening_and_training_touch_no_mask(whole):
    for path in whole.glob("MoNuSACGT/stage1_train/*/masks"):
        shutil.rmtree(path)
    splits = open_source(SETTINGS, str(whole))
    assert splits.train_annotated is None and splits.test == {}
    assert splits.train.read_tile(0).image.shape == (*SHAPE, 3) and len(splits.train.patch_labels) == 6


def test_the_sets_own_folder_serves_as_data_dir(whole):
    splits = open_source(SETTINGS, str(whole / "MoNuSACGT"))
    assert list(splits.train.tile_ids) == [BREAST] and len(splits.train.patch_labels) == 6


def test_a_half_unpacked_archive_is_named(whole):
    folder = whole / "MoNuSACGT" / "stage1_train" / STOMACH
    shutil.rmtree(folder / "masks")
    splits = open_source(SETTINGS, str(whole))
    with pytest.raises(DatasetError, match="unpack the whole archive"):
        splits.test["different_organ"].annotation(0)
    shutil.rmtree(folder / "images")
    sentence = refusal(whole)
    assert f"{STOMACH}.png does not exist" in sentence and "unpack" in sentence
    shutil.rmtree(whole / "MoNuSACGT" / "stage1_train")
    assert "unpack the whole of MoNuSACGT" in refusal(whole)
    (whole / "MoNuSACGT" / "stage1_train").mkdir()
    assert "holds no image's folder" in refusal(whole)


def test_a_wrong_root_is_named_and_an_archive_that_is_not_unpacked(tmp_path):
    assert "holds no folder MoNuSACGT" in refusal(tmp_path)
    (tmp_path / "MoNuSACGT.zip").write_bytes(b"PK")
    assert "unpack MoNuSACGT.zip" in refusal(tmp_path)


def test_patches_are_asked_for_where_they_are_needed(whole):
    shutil.rmtree(whole / "MyNP")
    assert "MyNP/positive and MyNP/negative" in refusal(whole)
    assert open_source(SETTINGS, str(whole), with_patches=False).train_annotated is not None
    (whole / "MyNP.rar").write_bytes(b"Rar!")
    assert "unpack MyNP.rar" in refusal(whole)
    add_patches(whole)
    shutil.rmtree(whole / "MyNP" / "negative")
    assert "no negative ones" in refusal(whole)


def test_other_images_scales_and_classes_are_refused(whole):
    assert "0.25 um/px but data.mpp is 0.5" in refusal(whole, DataSettings("monusac", mpp=0.5))
    assert "names 2" in refusal(whole, DataSettings("monusac", class_names=("a", "b")))
    folder = whole / "MoNuSACGT" / "stage1_train"
    (folder / BREAST).rename(folder / "mine")
    (folder / "mine" / "images" / f"{BREAST}.png").rename(folder / "mine" / "images" / "mine.png")
    assert "mine.png is none of Kumar's 30 images" in refusal(whole)
    shutil.rmtree(folder / "mine")
    assert "none of Kumar's 16 training images" in refusal(whole)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda image: np.uint16(image) * 257, "holds uint16 values: convert it to 8-bit RGB"),
        (lambda image: np.dstack([image, np.full(SHAPE, 99, np.uint8)]), "partly transparent"),
    ],
)
def test_16_bit_and_rgba_images_are_refused_with_their_name(whole, spoil, words):
    path = whole / "MoNuSACGT" / "stage1_train" / BREAST / "images" / f"{BREAST}.png"
    path.write_bytes(cv2.imencode(".png", spoil(picture(0)))[1].tobytes())
    with pytest.raises(DatasetError, match=words) as caught:
        open_source(SETTINGS, str(whole)).train.read_tile(0)
    assert str(path) in str(caught.value)


def test_names_with_spaces_and_letters_of_any_script(whole, tmp_path):
    root = whole.rename(tmp_path / "Données à lire 核")
    splits = open_source(SETTINGS, str(root))
    np.testing.assert_array_equal(splits.train.read_tile(0).image, picture(0))
    np.testing.assert_array_equal(splits.train_annotated.annotation(0).inst_map, INST_MAP)


# --- MoNuSACCROP ------------------------------------------------------------------------------------------------------


def test_crops_are_split_by_their_slide(crops):
    splits = open_source(SETTINGS, str(crops))
    assert list(splits.train.tile_ids) == [f"{BREAST}_crop_0", f"{BREAST}_crop_15"]
    assert list(splits.test) == ["different_organ"]
    np.testing.assert_array_equal(splits.test["different_organ"].annotation(0).inst_map, INST_MAP)


@pytest.mark.parametrize("name", ["masks", "mask"])
def test_black_and_white_masks_of_crops_are_cut_into_pieces(crops, name):
    (crops / "MoNuSACCROP" / "masks").rename(crops / "MoNuSACCROP" / name)
    for path in (crops / "MoNuSACCROP" / name).iterdir():
        write_png(path, np.uint8(INST_MAP > 0) * 255)
    annotation = open_source(SETTINGS, str(crops)).train_annotated.annotation(1)
    np.testing.assert_array_equal(annotation.inst_map, INST_MAP)
    assert "black-and-white" in annotation.notes[0]


def test_crops_without_masks_have_no_annotated_split(crops):
    shutil.rmtree(crops / "MoNuSACCROP" / "masks")
    splits = open_source(SETTINGS, str(crops))
    assert splits.train_annotated is None and splits.test == {}


def test_a_mask_of_another_size_than_its_crop_is_named(crops):
    write_png(crops / "MoNuSACCROP" / "masks" / f"{STOMACH}_crop_7.png", INST_MAP[:9].astype(np.uint16))
    with pytest.raises(DatasetError, match=r"9 x 16 px but .* has 12 x 16 px"):
        open_source(SETTINGS, str(crops)).test["different_organ"].annotation(0)


# --- the MoNuSAC of 2020 ----------------------------------------------------------------------------------------------


def write_region(path, image, mpp="0.2520"):
    """A region as Aperio saves one: tiled, and told by its description."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stated = f"|MPP = {mpp}" if mpp else ""
    text = f"Aperio Image Library v11\r\n{image.shape[1]}x{image.shape[0]} (16x16)|AppMag = 40{stated}"
    tifffile.imwrite(path, image, tile=(64, 64), photometric="rgb", metadata=None, description=text)


def write_outlines(path):
    """INST_MAP as two layers, and an ambiguous region over everything."""
    layers = [("Epithelial", (2, 1, 6, 4)), ("Neutrophil", (6, 6, 13, 11)), ("Ambiguous", (0, 0, 16, 12))]
    text = "<Annotations>"
    for name, (left, top, right, bottom) in layers:
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
        points = "".join(f'<Vertex X="{x - 0.5}" Y="{y - 0.5}" Z="0"/>' for x, y in corners)
        text += f'<Annotation><Attributes><Attribute Name="{name}"/></Attributes><Regions><Region><Vertices>{points}'
        text += "</Vertices></Region></Regions></Annotation>"
    path.write_text(text + "</Annotations>")


@pytest.fixture
def regions(tmp_path):
    root = add_patches(tmp_path / "data sets")
    for folder, patient in (("MoNuSAC_images_and_annotations", "TCGA-5P-A9K0-01Z-00-DX1"),) * 1 + (
        ("MoNuSAC Testing Data and Annotations", "TCGA-2Z-A9JG-01Z-00-DX1"),
    ):
        stem = root / folder / patient / f"{patient}_1"
        write_region(stem.with_name(stem.name + ".svs"), picture(4))
        write_outlines(stem.with_name(stem.name + ".xml"))
        tifffile.imwrite(stem.with_name(f"{patient}_2.tif"), picture(5), photometric="rgb")
        write_outlines(stem.with_name(f"{patient}_2.xml"))
    return root


def test_regions_types_and_scale(regions):
    settings = DataSettings("monusac2020", type_names=TYPES_2020)
    splits = open_source(settings, str(regions))
    assert [name[-2:] for name in splits.train.tile_ids] == ["_1", "_2"]
    svs, tif = splits.train.read_tile(0), splits.train.read_tile(1)
    np.testing.assert_array_equal(svs.image, picture(4))
    np.testing.assert_array_equal(tif.image, picture(5))
    assert (svs.mpp, tif.mpp) == (0.252, 0.25)
    for source in (splits.train_annotated, splits.test["test"]):
        annotation = source.annotation(0)
        np.testing.assert_array_equal(annotation.inst_map, INST_MAP)
        np.testing.assert_array_equal(annotation.type_map, np.choose(INST_MAP, [0, 1, 4]))
        assert annotation.notes == ("1 outlines of Ambiguous are left out",)
    untyped = open_source(DataSettings("monusac2020"), str(regions))
    assert untyped.train_annotated.annotation(0).type_map is None


def test_without_outlines_there_is_no_annotated_split(regions):
    for path in regions.rglob("*.xml"):
        path.unlink()
    splits = open_source(DataSettings("monusac2020"), str(regions))
    assert splits.train_annotated is None and splits.test == {} and len(splits.train.tile_ids) == 2


def test_regions_that_cannot_be_used_are_named(regions):
    svs = next(regions.glob("MoNuSAC_images*/*/*.svs"))
    source = open_source(DataSettings("monusac2020"), str(regions)).train
    write_region(svs, picture(4), mpp="0.5040")
    with pytest.raises(DatasetError, match=r"_1\.svs is at 0\.504 um/px but data\.mpp is 0\.25"):
        source.read_tile(0)
    write_region(svs, picture(4), mpp=None)
    assert source.read_tile(0).mpp == 0.25
    svs.write_bytes(b"no slide")
    with pytest.raises(DatasetError, match=r"_1\.svs is damaged or no slide"):
        source.read_tile(0)
    svs.unlink()
    with pytest.raises(DatasetError, match=r"_1\.svs is damaged or no slide"):
        source.read_tile(0)
    shutil.rmtree(svs.parent)
    assert "no SVS or TIFF" in refusal(regions, DataSettings("monusac2020"))
    shutil.rmtree(svs.parents[1])
    assert "MoNuSAC_images_and_annotations" in refusal(regions, DataSettings("monusac2020"))


@pytest.mark.skipif(not (REAL / "slides").is_dir(), reason="the real slides are not at hand")
def test_a_real_region_is_read_whole():
    from dataloader.region_files import read_region, region_mpp, region_shape

    path = REAL / "slides" / "CMU-1-Small-Region.svs"
    assert region_shape(path) == (2967, 2220) and region_mpp(path) == pytest.approx(0.499)
    image = read_region(path)
    assert image.shape == (2967, 2220, 3) and 150 < image.mean() < 250

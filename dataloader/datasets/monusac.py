"""The paper's MoNuSAC folders (Kumar's 30 images, see `kumar`), and the MoNuSAC of 2020, which is another data set.

Reader `monusac`, as the Cyclic Learning repositories lay it out:

DATA_DIR/MoNuSACGT/stage1_train/<ID>/images/<ID>.png     1000 x 1000 px
DATA_DIR/MoNuSACGT/stage1_train/<ID>/masks/*.png         one black-and-white PNG per nucleus
DATA_DIR/MoNuSACCROP/images/<ID>_crop_<n>.png            250 x 250 px, used where there is no MoNuSACGT; n = 0..15, of
                                                         which n % 4 counts down the image and n // 4 across it
DATA_DIR/MoNuSACCROP/masks/*.png (or mask/)              label maps, or black-and-white masks of all nuclei
DATA_DIR/MyNP/{positive,negative}/*.png                  the image-level labels: 224 x 224 px, cut from TCGA slides

Reader `monusac2020`, as its makers publish it: four organs, five classes, SVS or TIFF regions with Aperio's XML:

DATA_DIR/MoNuSAC_images_and_annotations/<patient>/<patient>_<n>.svs (.tif), <patient>_<n>.xml
DATA_DIR/MoNuSAC Testing Data and Annotations/<patient>/...

Both 40x (0.25 um/px); CC BY-NC-SA 4.0. Cite Kumar et al., IEEE TMI 36(7), 2017 for the first, Verma et al., IEEE TMI
40(12), 2021 for the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from dataloader.converted import CACHE_NAME
from dataloader.datasets.annotated import label_file
from dataloader.datasets.files import (
    DrawnTile,
    FileSource,
    TileFile,
    check_recipe,
    drawn_or_none,
    find_root,
    patches_beside,
)
from dataloader.datasets.kumar import TRAIN, assemble, by_split
from dataloader.images import IMAGE_SUFFIXES, list_images, read_bytes
from dataloader.instance_masks import is_black_and_white, read_black_and_white, read_instance_masks
from dataloader.label_files import read_label_map
from dataloader.outlines import read_outlines
from dataloader.region_files import read_region, region_mpp, region_shape
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import Annotation, DataSplits, UInt8Array

MPP = 0.25
CROP = 250  # px a side of a crop
CROPS = 4  # down and across an image
TYPES_2020 = ("background", "epithelial", "lymphocyte", "macrophage", "neutrophil")
LEFT_OUT_2020 = ("Ambiguous",)  # regions, not nuclei: its makers leave them out of scores
TRAIN_2020 = ("MoNuSAC_images_and_annotations",)
TEST_2020 = ("MoNuSAC Testing Data and Annotations", "MoNuSAC_Testing_Data_and_Annotations")


def open_monusac(data: DataSettings, data_dir: Path, with_patches: bool = True) -> DataSplits:
    """Kumar's 16 images to train on, tests `same_organ` (8) and `different_organ` (6). Opens no file.

    with_patches: whether to list MyNP, which then must be there. Raises DatasetError (one sentence: file and cure).
    """
    check_recipe(data, data_dir, MPP)
    if not (data_dir / "MoNuSACGT").is_dir() and (data_dir / "MoNuSACCROP").is_dir():
        return _open_crops(data, data_dir, with_patches)
    root = find_root(data_dir, ("MoNuSACGT",), "stage1_train")
    images = _whole_images(root / "stage1_train")
    splits = by_split(images)
    # Where some image has masks all should: one that lacks them is named when they are asked for.
    labelled = any(_masks_of(path).is_dir() for path in images)
    drawn = {
        split: [_with_masks(path, root / CACHE_NAME) for path in paths] if labelled else []
        for split, paths in splits.items()
    }
    return assemble(data, data_dir, with_patches, splits[TRAIN], drawn)


def _whole_images(root: Path) -> list[Path]:
    """<ID>/images/<ID>.png of each image's folder."""
    if not root.is_dir():
        raise DatasetError(f"{root} does not exist: unpack the whole of MoNuSACGT.")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    images = [folder / "images" / f"{folder.name}.png" for folder in folders]
    for path in images:
        if not path.is_file():
            raise DatasetError(f"{path} does not exist: unpack the archive again, or remove {path.parents[1]}.")
    if not images:
        raise DatasetError(f"{root} holds no image's folder: unpack the whole of MoNuSACGT.")
    return images


def _masks_of(image: Path) -> Path:
    return image.parents[1] / "masks"


def _with_masks(image: Path, cache_dir: Path) -> DrawnTile:
    draw = partial(read_instance_masks, _masks_of(image), cache_dir=cache_dir)
    return DrawnTile(TileFile(image.stem, image), _masks_of(image), draw)


def _open_crops(data: DataSettings, data_dir: Path, with_patches: bool) -> DataSplits:
    root = data_dir / "MoNuSACCROP"
    splits = by_split(list_images(root / "images"))
    labels = [folder for folder in (root / "masks", root / "mask") if folder.is_dir()]
    drawn = {
        split: [
            DrawnTile(TileFile(path.stem, path), labels[0], partial(_crop_label, path, labels[0])) for path in paths
        ]
        if labels
        else []
        for split, paths in splits.items()
    }
    return assemble(data, data_dir, with_patches, splits[TRAIN], drawn)


def _crop_label(image: Path, folder: Path, shape: tuple[int, int]) -> Annotation:
    """A crop's label map; a black-and-white mask is cut into its pieces."""
    path = label_file(image, folder)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        values = cv2.imdecode(np.frombuffer(read_bytes(path), np.uint8), cv2.IMREAD_UNCHANGED)
        if values is not None and is_black_and_white(values):
            return read_black_and_white(path)
    return read_label_map(path)


class RegionFile(TileFile):
    """A region of a slide, saved as Aperio SVS."""

    def read(self) -> UInt8Array:
        """uint8 (H, W, 3) RGB. Raises DatasetError."""
        return read_region(self.path)

    def shape(self) -> tuple[int, int]:
        """(height, width) px. Raises DatasetError."""
        return region_shape(self.path)

    def mpp(self) -> float | None:
        """Micrometres per pixel as the file states them, None where it does not."""
        return region_mpp(self.path)


def open_monusac2020(data: DataSettings, data_dir: Path, with_patches: bool = True) -> DataSplits:
    """The regions of the training patients to train on, and of the testing patients as `test`. Opens no file.

    Types are read where data.type_names names them (see TYPES_2020). with_patches: whether to list MyNP, which then
    must be there. Raises DatasetError (one sentence: file and cure).
    """
    check_recipe(data, data_dir, MPP)
    train = _regions(find_root(data_dir, TRAIN_2020, TRAIN_2020[0]))
    tests = [data_dir / name for name in TEST_2020 if (data_dir / name).is_dir()]
    test = drawn_or_none(_outlined(_regions(tests[0]), data), data.mpp) if tests else None
    return DataSplits(
        train=FileSource(data, train, patches_beside(data_dir, with_patches)),
        train_annotated=drawn_or_none(_outlined(train, data), data.mpp),
        test={} if test is None else {"test": test},
    )


def _regions(root: Path) -> list[TileFile]:
    """The regions of all patients, by name: the SVS, or the TIFF beside it where there is no SVS."""
    found: dict[str, TileFile] = {}
    for path in sorted(root.glob("*/*")):
        if path.suffix.lower() == ".svs":
            found[path.stem] = RegionFile(path.stem, path)
        elif path.suffix.lower() in (".tif", ".tiff"):
            found.setdefault(path.stem, TileFile(path.stem, path))
    if not found:
        raise DatasetError(f"{root} holds no SVS or TIFF in a folder per patient: unpack the whole archive there.")
    return [found[name] for name in sorted(found)]


def _outlined(regions: Sequence[TileFile], data: DataSettings) -> list[DrawnTile]:
    """The regions with their outlines; [] where none has any beside it."""
    labels = [region.path.with_suffix(".xml") for region in regions]
    if not any(path.is_file() for path in labels):
        return []
    draw = partial(read_outlines, type_names=data.type_names, left_out=LEFT_OUT_2020)
    return [DrawnTile(region, path, partial(draw, path)) for region, path in zip(regions, labels, strict=True)]

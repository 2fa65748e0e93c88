"""Kumar's 30 images, which the Cyclic Learning code calls MoNuSAC, and MoNuSeg, which grew out of them.

As their makers publish them, TIFF images with outlines in Aperio's XML:

DATA_DIR/MoNuSeg 2018 Training Data/Tissue Images/<ID>.tif, Annotations/<ID>.xml   (reader `kumar`, and `monuseg`)
DATA_DIR/MoNuSegTestData/<ID>.tif, <ID>.xml                                        (reader `monuseg`: its test split)
DATA_DIR/MyNP/{positive,negative}/*.png       the image-level labels, see `files.patches_beside`

Either folder may lie in another one of its own name, as the archives unpack. 1000 x 1000 px, 40x (0.25 um/px), one
class. Licence: CC BY-NC-SA 4.0. Cite Kumar et al., IEEE TMI 36(7), 2017; for MoNuSeg also Kumar et al., IEEE TMI 39(5),
2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from dataloader.datasets.files import (
    DrawnTile,
    FileSource,
    TileFile,
    check_recipe,
    drawn_or_none,
    find_root,
    patches_beside,
)
from dataloader.images import list_images
from dataloader.outlines import read_outlines
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import DataSplits

MPP = 0.25
TRAINING_NAMES = ("MoNuSeg 2018 Training Data", "MoNuSegTrainingData", "MoNuSegTrainData", "Kumar")
TEST_NAMES = ("MoNuSegTestData", "MoNuSeg 2018 Test Data")
TRAIN, SAME_ORGAN, DIFFERENT_ORGAN = "train", "same_organ", "different_organ"

# Kumar et al. 2017 train on 4 images each of breast, liver, kidney and prostate (16), and test on 2 more of each (8,
# "same organ") and 2 each of bladder, colon and stomach (6, "different organ"). The 14 names are those that the Cyclic
# Learning code holds out (VAL_IMAGE_IDS of its extract_patches_MONU.py), and that other conversions of the set list.
SPLIT_OF = {
    "TCGA-A7-A13E-01Z-00-DX1": TRAIN,  # breast
    "TCGA-A7-A13F-01Z-00-DX1": TRAIN,
    "TCGA-AR-A1AK-01Z-00-DX1": TRAIN,
    "TCGA-AR-A1AS-01Z-00-DX1": TRAIN,
    "TCGA-E2-A14V-01Z-00-DX1": SAME_ORGAN,
    "TCGA-E2-A1B5-01Z-00-DX1": SAME_ORGAN,
    "TCGA-B0-5711-01Z-00-DX1": TRAIN,  # kidney
    "TCGA-HE-7128-01Z-00-DX1": TRAIN,
    "TCGA-HE-7129-01Z-00-DX1": TRAIN,
    "TCGA-HE-7130-01Z-00-DX1": TRAIN,
    "TCGA-B0-5698-01Z-00-DX1": SAME_ORGAN,
    "TCGA-B0-5710-01Z-00-DX1": SAME_ORGAN,
    "TCGA-18-5592-01Z-00-DX1": TRAIN,  # liver, as published (TCGA knows these slides as lung)
    "TCGA-38-6178-01Z-00-DX1": TRAIN,
    "TCGA-49-4488-01Z-00-DX1": TRAIN,
    "TCGA-50-5931-01Z-00-DX1": TRAIN,
    "TCGA-21-5784-01Z-00-DX1": SAME_ORGAN,
    "TCGA-21-5786-01Z-00-DX1": SAME_ORGAN,
    "TCGA-G9-6336-01Z-00-DX1": TRAIN,  # prostate
    "TCGA-G9-6348-01Z-00-DX1": TRAIN,
    "TCGA-G9-6356-01Z-00-DX1": TRAIN,
    "TCGA-G9-6363-01Z-00-DX1": TRAIN,
    "TCGA-CH-5767-01Z-00-DX1": SAME_ORGAN,
    "TCGA-G9-6362-01Z-00-DX1": SAME_ORGAN,
    "TCGA-DK-A2I6-01A-01-TS1": DIFFERENT_ORGAN,  # bladder
    "TCGA-G2-A2EK-01A-02-TSB": DIFFERENT_ORGAN,
    "TCGA-AY-A8YK-01A-01-TS1": DIFFERENT_ORGAN,  # colon
    "TCGA-NH-A8F7-01A-01-TS1": DIFFERENT_ORGAN,
    "TCGA-KB-A93J-01A-01-TS1": DIFFERENT_ORGAN,  # stomach
    "TCGA-RD-A8N9-01A-01-TS1": DIFFERENT_ORGAN,
}
ID_LENGTH = 23  # characters of a TCGA slide name: what follows it names a crop


def split_of(path: Path) -> str:
    """The split of an image or crop, by the slide that its name begins with. Raises DatasetError for any other name."""
    found = SPLIT_OF.get(path.stem[:ID_LENGTH])
    if found is None:
        raise DatasetError(
            f"{path} is none of Kumar's 30 images, so that its split is not known: take it out, or use data.reader "
            "'monuseg' or 'folder'."
        )
    return found


def by_split(paths: Iterable[Path]) -> dict[str, list[Path]]:
    """Kumar's splits of the images that are there. Raises DatasetError for another image, and for no training image."""
    found: dict[str, list[Path]] = {TRAIN: [], SAME_ORGAN: [], DIFFERENT_ORGAN: []}
    listed = list(paths)
    for path in listed:
        found[split_of(path)].append(path)
    if not found[TRAIN]:
        raise DatasetError(
            f"{listed[0].parent} holds none of Kumar's 16 training images: unpack the whole data set there."
        )
    return found


def open_kumar(data: DataSettings, data_dir: Path, with_patches: bool = True) -> DataSplits:
    """Kumar's 16 images to train on, tests `same_organ` (8) and `different_organ` (6). Opens no file.

    with_patches: whether to list MyNP, which then must be there. Raises DatasetError (one sentence: file and cure).
    """
    check_recipe(data, data_dir, MPP)
    images, labels = _training_folders(data_dir)
    splits = by_split(list_images(images))
    drawn = {split: _drawn(paths, labels) for split, paths in splits.items()}
    return assemble(data, data_dir, with_patches, splits[TRAIN], drawn)


def open_monuseg(data: DataSettings, data_dir: Path, with_patches: bool = True) -> DataSplits:
    """All images of the training archive to train on, and those of the test archive as `test`. Opens no file.

    with_patches: whether to list MyNP, which then must be there. Raises DatasetError (one sentence: file and cure).
    """
    check_recipe(data, data_dir, MPP)
    images, labels = _training_folders(data_dir)
    train = list_images(images)
    drawn = {TRAIN: _drawn(train, labels)}
    tests = [folder for name in TEST_NAMES for folder in (data_dir / name / name, data_dir / name) if folder.is_dir()]
    if tests:
        drawn["test"] = _drawn(list_images(tests[0]), tests[0])
    return assemble(data, data_dir, with_patches, train, drawn)


def assemble(
    data: DataSettings,
    data_dir: Path,
    with_patches: bool,
    train: Sequence[Path],
    drawn: dict[str, list[DrawnTile]],
) -> DataSplits:
    """The splits of a set whose images are files: `train` unlabelled, `drawn` by split, TRAIN and the tests."""
    tests = {split: drawn_or_none(tiles, data.mpp) for split, tiles in drawn.items() if split != TRAIN}
    return DataSplits(
        train=FileSource(data, [TileFile(path.stem, path) for path in train], patches_beside(data_dir, with_patches)),
        train_annotated=drawn_or_none(drawn[TRAIN], data.mpp),
        test={split: source for split, source in tests.items() if source is not None},
    )


def _training_folders(data_dir: Path) -> tuple[Path, Path]:
    root = find_root(data_dir, TRAINING_NAMES, "Tissue Images")
    root = root / root.name if (root / root.name).is_dir() else root
    return root / "Tissue Images", root / "Annotations"


def _drawn(images: Sequence[Path], labels: Path) -> list[DrawnTile]:
    """The images with their outlines, [] where the folder of outlines is missing."""
    if not labels.is_dir():
        return []
    drawn = []
    for path in images:
        outlines = labels / f"{path.stem}.xml"
        drawn.append(DrawnTile(TileFile(path.stem, path), outlines, partial(read_outlines, outlines)))
    return drawn

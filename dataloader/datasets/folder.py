"""Own data in folders.

DATA_DIR/patches/positive/*.png   patches that hold at least one whole nucleus (any suffix of `IMAGE_SUFFIXES`)
DATA_DIR/patches/negative/*.png   patches that hold none
DATA_DIR/tiles/*.png              unlabelled tiles to segment while learning
DATA_DIR/labels/*.png             optional: labels of `tiles`, for recipes that learn from masks
DATA_DIR/{valid,test}/images, DATA_DIR/{valid,test}/labels     optional: tiles with labels, to score on

Labels are label maps (PNG, TIFF, NPY, MAT; see `label_files`), or outlines as QuPath exports them (GeoJSON) or
ImageScope saves them (XML; see `outlines`).
"""

from __future__ import annotations

from pathlib import Path

from dataloader.datasets.annotated import tiles_with_labels, unique_stems
from dataloader.datasets.files import FileSource, TileFile, check_recipe, list_patches
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import DataSplits


def open_folder(data: DataSettings, data_dir: Path, with_patches: bool = True) -> DataSplits:
    """The splits of own data; annotated ones where their label folder exists. Opens no file.

    with_patches: whether to list the folders of patches, which then must be there.
    Raises DatasetError (one sentence: folder and cure).
    """
    check_recipe(data, data_dir)
    tiles = [TileFile(path.stem, path) for path in unique_stems(data_dir / "tiles")]
    patches = list_patches(data_dir / "patches") if with_patches else []
    labelled = {
        split: tiles_with_labels(data_dir / images, data_dir / labels, data.mpp, data.type_names)
        for split, images, labels in (
            ("train", "tiles", "labels"),
            ("valid", "valid/images", "valid/labels"),
            ("test", "test/images", "test/labels"),
        )
    }
    return DataSplits(
        train=FileSource(data, tiles, patches),
        train_annotated=labelled["train"],
        valid=labelled["valid"],
        test={} if labelled["test"] is None else {"test": labelled["test"]},
    )

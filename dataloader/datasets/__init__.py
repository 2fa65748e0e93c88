"""Readers of data sets. `open_source` is the only way in."""

from __future__ import annotations

from pathlib import Path

from dataloader.datasets.benchmark import open_benchmark
from dataloader.datasets.demo import open_demo
from dataloader.datasets.folder import open_folder
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import DataSplits


def open_source(data: DataSettings, data_dir: str, with_patches: bool = True) -> DataSplits:
    """The splits that `data.reader` finds in `data_dir`.

    with_patches: False for a run on drawn masks alone: labelled patches need not be there, and none are listed.
    No file of a `labels` folder is opened: label maps are read by `AnnotatedSource.annotation` alone. The demo reader
    draws its data into `data_dir` first where there is none. Raises DatasetError (one sentence: file and cure).
    """
    folder = Path(data_dir)
    if data.reader == "demo":
        return open_demo(data, folder)
    if not folder.is_dir():
        raise DatasetError(f"The folder {folder} does not exist: check --data_dir.")
    return (open_benchmark if data.reader == "benchmark" else open_folder)(data, folder, with_patches)

"""Readers of data sets. `open_source` is the only way in."""

from __future__ import annotations

from pathlib import Path

from dataloader.datasets import ccrcc, consep, monusac, pannuke
from dataloader.datasets.benchmark import open_benchmark
from dataloader.datasets.ccrcc import open_ccrcc
from dataloader.datasets.consep import open_consep
from dataloader.datasets.demo import open_demo
from dataloader.datasets.folder import open_folder
from dataloader.datasets.kumar import open_kumar, open_monuseg
from dataloader.datasets.monusac import open_monusac, open_monusac2020
from dataloader.datasets.npy_files import open_npy_patches
from dataloader.datasets.pannuke import open_pannuke
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import DataSplits


def open_source(data: DataSettings, data_dir: str, with_patches: bool = True) -> DataSplits:
    """The splits that `data.reader` finds in `data_dir`.

    with_patches: False for a run on drawn masks alone: labelled patches need not be there, and none are listed.
    No label file is opened: masks are read by `AnnotatedSource.annotation` alone. The demo reader draws its data into
    `data_dir` first where there is none. Raises DatasetError (one sentence: file and cure).
    """
    folder = Path(data_dir)
    if data.reader == "demo":
        return open_demo(data, folder)
    if not folder.is_dir():
        raise DatasetError(f"The folder {folder} does not exist: check --data_dir.")
    readers = {
        "folder": open_folder,
        "benchmark": open_benchmark,
        "monusac": open_monusac,
        "ccrcc": open_ccrcc,
        "consep": open_consep,
        "kumar": open_kumar,
        "monuseg": open_monuseg,
        "monusac2020": open_monusac2020,
        "pannuke": open_pannuke,
        "npy_patches": open_npy_patches,
    }
    return readers[data.reader](data, folder, with_patches)


def known_types(reader: str) -> tuple[str, ...]:
    """Names of the types that a set's own files tell, background first; () where the set has none, or is the user's."""
    types = {
        "ccrcc": ccrcc.TYPES,
        "consep": consep.TYPES,
        "monusac2020": monusac.TYPES_2020,
        "pannuke": pannuke.TYPES,
    }
    return types.get(reader, ())

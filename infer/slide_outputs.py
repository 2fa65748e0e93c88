"""A slide's files: which there are, where, and how they are put together from its journal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataloader.slides import UM_OF_MAGNIFICATION_1
from hovernet_cyclic import __version__
from infer.geoparquet import GeoParquetStream
from infer.journal import Journal, Key
from infer.nucleus_table import NucleusTable
from infer.seam import found_twice, without
from infer.slide_pictures import Pictures, png, tissue_picture
from infer.slide_plan import SlidePlan
from infer.slide_record import RecordHead, head_of, read_band
from infer.slide_writers import GeoJsonStream, JsonStream, Level0, NucleusStream
from infer.staged_files import StagedFiles
from infer.type_info import TypeInfo

SUFFIXES = {
    "json": ".json",
    "geojson": ".geojson",
    "parquet": ".parquet",
    "overlay": ".png",
    "density": ".png",
    "tissue": ".png",
    "thumb": ".png",
    "mask": ".png",
    "info": ".json",  # last: where it is, all are
}
COORDINATES = "px of the slide's finest level, x to the right, y down, pixel centres at integers"
QUPATH_COORDINATES = "px of the slide's finest level, x to the right, y down, along the edges of pixels"


@dataclass(frozen=True)
class SlideFolder:
    """Where the results of slides are written: root/json/NAME.json and so on.

    types: names and colours. save_thumb, save_mask: also thumb/NAME.png and mask/NAME.png.
    """

    root: Path
    types: TypeInfo
    save_thumb: bool = False
    save_mask: bool = False

    def path(self, folder: str, name: str) -> Path:
        """The file of a slide in one of the folders of SUFFIXES."""
        return self.root / folder / f"{name}{SUFFIXES[folder]}"

    def info(self, name: str) -> Mapping[str, Any] | None:
        """What a finished run wrote of a slide; None where there is none."""
        try:
            content: Mapping[str, Any] = json.loads(self.path("info", name).read_bytes())
        except (OSError, ValueError):
            return None
        return content

    def holds_all(self, plan: SlidePlan) -> bool:
        """Whether every file that is asked for is there."""
        return all(self.path(folder, plan.name).is_file() for folder in self._folders(plan))

    def write(self, plan: SlidePlan, journal: Journal, identity: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write all files of a slide, in an order that does not depend on how it was cut. Returns what `info` holds.

        Raises OSError where the disk refuses; then none of them is there.
        """
        heads = {key: head_of(journal, key) for key in journal}
        info = _summary(plan, heads, identity)
        with StagedFiles() as staged:
            paths = {folder: staged.path(self.path(folder, plan.name)) for folder in self._folders(plan)}
            pictures = Pictures(plan, self.types, paths["overlay"], paths["density"])
            info |= self._stream([*self._streams(plan, paths), pictures], plan, journal, heads)
            self._write_pictures(plan, pictures, paths)
            paths["info"].write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return info

    def _folders(self, plan: SlidePlan) -> Iterator[str]:
        wanted = {"thumb": self.save_thumb, "mask": self.save_mask and plan.tissue is not None}
        wanted["tissue"] = plan.tissue is not None
        yield from (folder for folder in SUFFIXES if wanted.get(folder, True))

    def _streams(self, plan: SlidePlan, paths: Mapping[str, Path]) -> list[NucleusStream]:
        level0 = Level0(*plan.view.scale_to_level0)
        mpp = float(np.mean(plan.scale.mpp))
        header = {"mag": UM_OF_MAGNIFICATION_1 / mpp, "mpp": mpp, "coordinates": COORDINATES}
        edges = {**header, "coordinates": QUPATH_COORDINATES}
        return [
            JsonStream(paths["json"], level0, header),
            GeoJsonStream(paths["geojson"], level0, self.types, edges),
            GeoParquetStream(paths["parquet"], level0, self.types, edges),
        ]

    def _stream(
        self, streams: list[NucleusStream], plan: SlidePlan, journal: Journal, heads: dict[Key, RecordHead]
    ) -> dict[str, Any]:
        """Pass all nuclei through; returns how many there were."""
        left_out = found_twice(journal, heads)
        count, incomplete = 0, 0
        by_type: dict[int, int] = {}
        for table in _bands(plan, journal, heads):
            table = without(table, left_out)
            for stream in streams:
                stream.add(table, count + 1)
            count, incomplete = count + len(table), incomplete + int((~table.complete).sum())
            for type_id, number in zip(*np.unique(table.type_id, return_counts=True), strict=True):
                by_type[int(type_id)] = by_type.get(int(type_id), 0) + int(number)
        for stream in streams:
            stream.close()
        named = {self.types.name(i): by_type[i] for i in sorted(by_type) if i >= 0}
        return {"nuclei": count, "nuclei_by_type": named, "nuclei_in_clusters_too_large": incomplete}

    def _write_pictures(self, plan: SlidePlan, pictures: Pictures, paths: Mapping[str, Path]) -> None:
        if plan.tissue is not None:
            paths["tissue"].write_bytes(png(tissue_picture(pictures.thumbnail, plan.tissue.mask)))
        if "thumb" in paths:
            paths["thumb"].write_bytes(png(pictures.thumbnail))
        if "mask" in paths and plan.tissue is not None:
            paths["mask"].write_bytes(png(plan.tissue.mask.astype(np.uint8) * 255))


def _bands(plan: SlidePlan, journal: Journal, heads: dict[Key, RecordHead]) -> Iterator[NucleusTable]:
    """The nuclei on tissue, band by band."""
    for band in sorted({band for head in heads.values() for band in head.bands}):
        table = read_band(journal, heads, band)
        if table is not None:
            yield table if plan.tissue is None else table.take(np.flatnonzero(plan.tissue.at(table.centroid)))


def _summary(plan: SlidePlan, heads: dict[Key, RecordHead], identity: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a slide before its nuclei are written."""
    view, scale = plan.view, Level0(*plan.view.scale_to_level0)
    unreadable = [box for head in heads.values() for box in head.unreadable]
    return {
        "slide": plan.reader.path,
        "version": __version__,
        "coordinates": COORDINATES,
        "origin_in_file": list(plan.reader.origin),
        "level0": {"height": plan.reader.level_shapes[0][0], "width": plan.reader.level_shapes[0][1]},
        "level0_mpp": list(plan.scale.mpp),
        "mpp_from": plan.scale.source,
        "read": {"level": view.level, "mpp": list(view.mpp), "resampled": view.factors != (1.0, 1.0)},
        "tissue_share": None if plan.tissue is None else round(plan.tissue.share, 6),
        "tissue_mm2": round(_counted_mm2(plan), 6),
        "unreadable": sorted(_level0_box(box, scale) for box in unreadable),
        "identity": json.loads(json.dumps(identity)),
    }


def _counted_mm2(plan: SlidePlan) -> float:
    """mm2 where nuclei count: of tissue within the region."""
    area = plan.region.height * plan.region.width * plan.view.mpp[0] * plan.view.mpp[1] / 1e6
    return area if plan.tissue is None else area * plan.tissue.share_in(plan.region)


def _level0_box(box: Any, scale: Level0) -> list[int]:
    """[x, y, width, height] in px of level 0, as --region takes it."""
    left, top = int(box.left * scale.across), int(box.top * scale.down)
    return [left, top, round(box.right * scale.across) - left, round(box.bottom * scale.down) - top]

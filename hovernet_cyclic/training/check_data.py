"""What a recipe's data holds and what is wrong with it: `run_train.py --check_data`. Reads everything once.

Drawn masks are opened here because a person asked to have them looked at: nothing is trained, and nothing is kept.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from joblib import Parallel, cpu_count, delayed

from dataloader.classifier_loader import label_name, split_by_group
from dataloader.datasets.files import TCGA_PATIENT
from hovernet_cyclic.core.errors import DatasetError, HoverNetCyclicError
from hovernet_cyclic.core.label_maps import instance_areas, majority_types
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import AnnotatedSource, Annotation, DataSplits, TileSource, UInt8Array

LISTED = 8  # lines of one kind before the rest is only counted
PATCHES, TILES = "patches", "train"


@dataclass(frozen=True)
class Seen:
    """What reading one item gave. problem: why it, or its mask, cannot be read.

    name: of the item; digest: of its pixels and size, '' where unread; shape: (H, W) px; label: the name of its
    image-level label, or ''; nuclei: type_id -> count, None where there are no masks, type 0 where types are not told.
    """

    name: str
    digest: str = ""
    shape: tuple[int, int] = (0, 0)
    mpp: float | None = None
    label: str = ""
    nuclei: dict[int, int] | None = None
    notes: tuple[str, ...] = ()
    problem: str = ""


class HeldOut(NamedTuple):
    """images: how many the patches are cut from, by their names. patches: label -> how many judge the cycles."""

    images: int
    patches: dict[str, int]


@dataclass
class Report:
    """What was found. groups: split -> its items; missing, leaks, conflicts: sentences that make the check fail.

    patients: TCGA patients that are learnt from and scored on, which is said and left to a person's judgement.
    """

    groups: dict[str, list[Seen]]
    held_out: HeldOut | None = None
    missing: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    patients: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Sentences about images and masks that cannot be read."""
        return [item.problem for items in self.groups.values() for item in items if item.problem]

    @property
    def sound(self) -> bool:
        """Whether everything can be read, there is enough, and no split or label contradicts another."""
        return not (self.problems or self.missing or self.leaks or self.conflicts)


def check_data(splits: DataSplits, data: DataSettings, seed: int) -> Report:
    """Read each patch, tile and mask once, in parallel, and compare all pictures with one another by their pixels.

    seed: of the run that the data is meant for, which decides what is held out.
    """
    groups = {PATCHES: _patches(splits.train), TILES: _tiles(splits.train, splits.train_annotated)}
    scored = {**({"valid": splits.valid} if splits.valid else {}), **splits.test}
    groups |= {name: _annotated(source, range(len(source.tile_ids))) for name, source in scored.items()}
    report = Report({name: items for name, items in groups.items() if items})
    if PATCHES in report.groups:
        _hold_out(report, splits.train, data, seed)
    _compare(report)
    return report


def _hold_out(report: Report, source: TileSource, data: DataSettings, seed: int) -> None:
    """Fill in what a run of this seed holds out, or the label that it would then miss."""
    try:
        _, held = split_by_group(source, data.valid_fraction, seed)
    except DatasetError as error:
        report.missing.append(str(error))
        return
    counts = Counter(source.patch_labels[held, 0].tolist())
    held_out = {label_name(source, label): counts[label] for label in (1.0, 0.0)}
    report.held_out = HeldOut(len(set(source.patch_groups)), held_out)


def _patches(source: TileSource) -> list[Seen]:
    names = [label_name(source, label) for label in source.patch_labels[:, 0]]

    def look(index: int) -> Seen:
        patch = source.read_patch(index)
        return Seen(patch.patch_id, _digest(patch.image), _size(patch.image), label=names[index])

    return _all(look, range(len(names)), [f"{names[i]} patch {i + 1}" for i in range(len(names))])


def _tiles(source: TileSource, annotated: AnnotatedSource | None) -> list[Seen]:
    """The training tiles, with their masks where these are drawn."""
    if annotated is not None and list(annotated.tile_ids) == list(source.tile_ids):
        return _annotated(annotated, range(len(source.tile_ids)))

    def look(index: int) -> Seen:
        tile = source.read_tile(index)
        return Seen(tile.tile_id, _digest(tile.image), _size(tile.image), tile.mpp)

    return _all(look, range(len(source.tile_ids)), source.tile_ids)


def _annotated(source: AnnotatedSource, indices: range) -> list[Seen]:
    def look(index: int) -> Seen:
        tile = source.read_tile(index)
        seen = Seen(tile.tile_id, _digest(tile.image), _size(tile.image), tile.mpp)
        try:
            drawn = source.annotation(index)
        except HoverNetCyclicError as error:  # its picture is compared with the others all the same
            return replace(seen, problem=str(error))
        return replace(seen, nuclei=_count(drawn), notes=drawn.notes)

    return _all(look, indices, source.tile_ids)


def _count(drawn: Annotation) -> dict[int, int]:
    """type_id -> number of nuclei; all of type 0 where types are not told."""
    if drawn.type_map is None:
        return {0: len(instance_areas(drawn.inst_map)[0])}
    return dict(Counter(kind for kind, _ in majority_types(drawn.inst_map, drawn.type_map).values()))


def _all(look: Callable[[int], Seen], indices: Sequence[int], names: Sequence[str]) -> list[Seen]:
    """look(index) of each, in parallel; what cannot be read is named and does not stop the rest."""

    def safely(index: int) -> Seen:
        try:
            return look(index)
        except HoverNetCyclicError as error:
            return Seen(names[index], problem=str(error))

    # Threads: decoding and hashing leave the interpreter free, and nothing has to be sent between processes.
    found: list[Seen] = Parallel(cpu_count(), prefer="threads")(delayed(safely)(index) for index in indices)
    return found


def _size(image: UInt8Array) -> tuple[int, int]:
    height, width, _ = image.shape
    return height, width


def _digest(image: UInt8Array) -> str:
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def _compare(report: Report) -> None:
    """Fill in which pictures are found twice: across splits, or under both labels."""
    places: dict[str, list[tuple[str, Seen]]] = defaultdict(list)
    for split, items in report.groups.items():
        for item in items:
            if item.digest:
                places[item.digest].append((split, item))
    for found in places.values():
        sides = {"train" if split in (PATCHES, TILES) else split for split, _ in found}
        named = " = ".join(f"{split} {item.name}" for split, item in found)
        if len(sides) > 1:
            report.leaks.append(f"one picture in several splits: {named}")
        if len({item.label for split, item in found if split == PATCHES}) > 1:
            report.conflicts.append(f"one patch under both labels: {named}")
    report.patients += _shared_patients(report)


def _shared_patients(report: Report) -> Iterator[str]:
    """Patients by their TCGA number, wherever it stands in a name."""
    splits: dict[str, set[str]] = defaultdict(set)
    for split, items in report.groups.items():
        for item in items:
            patient = TCGA_PATIENT.search(item.name)
            if patient:
                splits[patient.group()].add(split)
    for name, found in sorted(splits.items()):
        if found & {PATCHES, TILES} and found - {PATCHES, TILES}:
            yield f"{name} in {', '.join(sorted(found))}"


def describe(report: Report, data: DataSettings, data_dir: str) -> str:
    """The report as lines for people."""
    lines = [f"{data.reader} data in {data_dir}"]
    for split, items in report.groups.items():
        lines += ["", *_split_lines(split, [item for item in items if item.digest], data)]
        if split == PATCHES and report.held_out is not None:
            lines.append(_held_out_line(report.held_out, data.valid_fraction))
    copies = sum(len(items) - len({item.digest for item in items}) for items in _read(report))
    lines += ["", f"copies within a split: {copies}"]
    for title, sentences in (
        ("cannot be read", report.problems),
        ("missing", report.missing),
        ("under both labels", report.conflicts),
        ("leaks between splits", report.leaks),
        ("TCGA patients that are learnt from and scored on", report.patients),
    ):
        lines += _listed(title, sentences)
    return "\n".join([*lines, "", "sound" if report.sound else "NOT sound: see above"])


def _read(report: Report) -> Iterator[list[Seen]]:
    for items in report.groups.values():
        yield [item for item in items if item.digest]


def _split_lines(split: str, items: Sequence[Seen], data: DataSettings) -> Iterator[str]:
    sizes = Counter(item.shape for item in items).most_common()
    named = [f"{height} x {width} ({count})" for (height, width), count in sizes[:LISTED]]
    more = f" and {len(sizes) - LISTED} more" if len(sizes) > LISTED else ""
    yield f"{split}: {len(items)}" + ("" if split == PATCHES else " tiles" if len(items) != 1 else " tile")
    yield f"  px: {', '.join(named)}{more}"
    mpps = sorted({item.mpp for item in items if item.mpp is not None} or {data.mpp})
    yield f"  um/px: {', '.join(f'{mpp:g}' for mpp in mpps)}"
    labels = Counter(item.label for item in items if item.label)
    if labels:
        yield f"  labels: {_shares(labels)}"
    drawn = [item for item in items if item.nuclei is not None]
    if drawn:
        yield from _nuclei_lines(drawn, data)


def _held_out_line(held_out: HeldOut, valid_fraction: float) -> str:
    """From how many images patches come, and which of them judge the cycles of a run."""
    counts = ", ".join(f"{name} {count}" for name, count in held_out.patches.items())
    line = f"  cut from images, by their names: {held_out.images}; held out to judge cycles: {counts}"
    if all(held_out.patches.values()):
        return line
    return f"{line} (data.valid_fraction {valid_fraction:g}): every cycle is kept unjudged, for that takes both"


def _nuclei_lines(drawn: Sequence[Seen], data: DataSettings) -> Iterator[str]:
    counts = [sum((item.nuclei or {}).values()) for item in drawn]
    yield f"  nuclei: {sum(counts)}, {min(counts)} to {max(counts)} a tile"
    types: Counter[str] = Counter()
    for item in drawn:
        for type_id, count in (item.nuclei or {}).items():
            types[_type_name(type_id, data.type_names)] += count
    if data.type_names:
        yield f"  types: {_shares(types)}"
    empty = [item.name for item, count in zip(drawn, counts, strict=True) if not count]
    if empty:
        yield f"  without any nucleus: {', '.join(empty[:LISTED])}{_and_more(empty)}"
    noted = [f"{item.name}: {note}" for item in drawn for note in item.notes]
    yield from (f"  note: {line}" for line in noted[:LISTED])
    if len(noted) > LISTED:
        yield f"  note: {len(noted) - LISTED} more of these"


def _type_name(type_id: int, names: Sequence[str]) -> str:
    if type_id == 0:
        return "no type"
    return names[type_id] if type_id < len(names) else f"type {type_id}"


def _shares(counts: Counter[str]) -> str:
    total = sum(counts.values())
    return ", ".join(f"{name} {count} ({count / max(1, total):.0%})" for name, count in counts.most_common())


def _listed(title: str, sentences: Sequence[str]) -> list[str]:
    if not sentences:
        return [f"{title}: none"]
    return [f"{title}: {len(sentences)}", *(f"  {line}" for line in sentences[:LISTED])] + (
        [f"  and {len(sentences) - LISTED} more"] if len(sentences) > LISTED else []
    )


def _and_more(names: Sequence[str]) -> str:
    return f" and {len(names) - LISTED} more" if len(names) > LISTED else ""

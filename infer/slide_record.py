"""What a tile of a slide leaves in the journal: its nuclei, in bands of rows, and what is still open."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hovernet_cyclic.core.types import Box
from infer.journal import Journal, Key
from infer.nucleus_table import NucleusTable, concatenate, from_bytes, to_bytes

# px of the slide: nuclei are written in the order of these squares, row by row, whatever the tiles were.
BAND = 512
_LENGTH = struct.Struct("<I")


class OpenCluster(NamedTuple):
    """A cluster of nuclei that a tile saw a part of, px of the slide. seed: (row, column) of one of its pixels."""

    seed: tuple[int, int]
    seen: Box
    own: Box


@dataclass(frozen=True)
class RecordHead:
    """bands: row of the band -> (offset, length, nuclei). unreadable: px of the slide. size: bytes of the head."""

    bands: dict[int, tuple[int, int, int]]
    open_clusters: tuple[OpenCluster, ...] = ()
    unreadable: tuple[Box, ...] = ()
    size: int = 0

    @property
    def nuclei(self) -> int:
        """How many the record holds."""
        return sum(count for _, _, count in self.bands.values())


def pack(table: NucleusTable, open_clusters: tuple[OpenCluster, ...] = (), unreadable: tuple[Box, ...] = ()) -> bytes:
    """The content of a record."""
    blobs, bands, offset = [], {}, 0
    band_of = (table.centroid[:, 1] + 0.5).astype(np.int64) // BAND
    for band in np.unique(band_of).tolist():
        chosen = np.flatnonzero(band_of == band)
        blobs.append(to_bytes(table.take(chosen)))
        bands[band] = (offset, len(blobs[-1]), len(chosen))
        offset += len(blobs[-1])
    head = json.dumps({"bands": bands, "open": open_clusters, "unreadable": unreadable}).encode()
    return _LENGTH.pack(len(head)) + head + b"".join(blobs)


def with_unreadable(content: bytes, boxes: tuple[Box, ...]) -> bytes:
    """The record with these boxes named in it."""
    head = _head(content)
    named = json.dumps({**head, "unreadable": boxes}).encode()
    return _LENGTH.pack(len(named)) + named + content[_LENGTH.size + _LENGTH.unpack_from(content)[0] :]


def _head(content: bytes) -> Any:
    (length,) = _LENGTH.unpack_from(content)
    return json.loads(content[_LENGTH.size : _LENGTH.size + length])


def read_head(content: bytes) -> RecordHead:
    """What a record says of itself."""
    stored = _head(content)
    return RecordHead(
        bands={int(band): (place[0], place[1], place[2]) for band, place in stored["bands"].items()},
        open_clusters=tuple(
            OpenCluster((seed[0], seed[1]), Box(*seen), Box(*own)) for seed, seen, own in stored["open"]
        ),
        unreadable=tuple(Box(*box) for box in stored["unreadable"]),
        size=_LENGTH.size + _LENGTH.unpack_from(content)[0],
    )


def head_of(journal: Journal, key: Key) -> RecordHead:
    """The head of a record in the journal."""
    (length,) = _LENGTH.unpack(journal.read(key, 0, _LENGTH.size))
    return read_head(journal.read(key, 0, _LENGTH.size + length))


def read_band(journal: Journal, heads: dict[Key, RecordHead], band: int) -> NucleusTable | None:
    """All nuclei of a band, in the order of squares, then of y and x; None where there is none."""
    tables = []
    for key, head in heads.items():
        if band in head.bands:
            offset, length, _ = head.bands[band]
            tables.append(from_bytes(journal.read(key, head.size + offset, length)))
    if not tables:
        return None
    table = concatenate(tables)
    x, y = table.centroid.T
    return table.take(np.lexsort((x, y, (x + 0.5).astype(np.int64) // BAND)))

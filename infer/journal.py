"""What is done of a slide, on disk as it is done: a run that is killed goes on where it was.

One file of records, appended and synced one by one: a header with key, length and checksum, then the content. What a
torn end leaves is cut off when the file is opened again. `plan.json` beside it says what the records belong to.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from infer.writers import write_together

_HEADER = struct.Struct("<4siiIQI")  # mark, two numbers of the key, its kind, length and checksum of the content
_MARK = b"hvnt"
TILE, CLUSTER = 0, 1  # kinds of records


class Key(NamedTuple):
    """Of a record. kind: TILE or CLUSTER. row, column: of the tile; for a cluster, its place in the list and 0."""

    kind: int
    row: int
    column: int


class _Place(NamedTuple):
    offset: int
    length: int


class Journal:
    """The records of one slide, in a folder of its own. Raises OSError where the disk refuses."""

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        """Open or begin it. plan: plain values that decide the records' content.

        started_over: it was of another plan.
        """
        self.folder = folder
        self.started_over = False
        self._places: dict[Key, _Place] = {}
        self._prepare(json.loads(json.dumps(plan)))
        self._file: BinaryIO = (folder / "records").open("r+b")
        self._end = self._recover()

    def _prepare(self, plan: Any) -> None:
        stored = self.folder / "plan.json"
        if self._stored_plan() != plan:
            self.started_over = (self.folder / "records").exists()
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "records").touch()
            write_together({stored: json.dumps(plan, indent=1).encode()})

    def _stored_plan(self) -> Any:
        try:
            if not (self.folder / "records").is_file():
                return None
            return json.loads((self.folder / "plan.json").read_bytes())
        except (OSError, ValueError):
            return None

    def _recover(self) -> int:
        """Index the whole records and cut off the rest. Returns where the next one goes."""
        end, size = 0, os.fstat(self._file.fileno()).st_size
        while (found := self._record_at(end, size)) is not None:
            key, place = found
            self._places[key] = place
            end = place.offset + place.length
        self._file.truncate(end)
        return end

    def _record_at(self, offset: int, size: int) -> tuple[Key, _Place] | None:
        self._file.seek(offset)
        header = self._file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            return None
        mark, row, column, kind, length, checksum = _HEADER.unpack(header)
        place = _Place(offset + _HEADER.size, length)
        if mark != _MARK or place.offset + length > size or zlib.crc32(self._file.read(length)) != checksum:
            return None
        return Key(kind, row, column), place

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[Key]:
        """Keys of all records, sorted: tiles first."""
        yield from sorted(self._places)

    def append(self, key: Key, content: bytes) -> None:
        """Add a record; when this returns it is on disk. After an error the journal is as it was before."""
        header = _HEADER.pack(_MARK, key.row, key.column, key.kind, len(content), zlib.crc32(content))
        try:
            self._file.seek(self._end)
            self._file.write(header + content)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError:
            self._cut_back()
            raise
        self._places[key] = _Place(self._end + len(header), len(content))
        self._end += len(header) + len(content)

    def _cut_back(self) -> None:
        """Forget what is half-written: also what still waits in the file's buffer."""
        os.truncate(self.folder / "records", self._end)
        with contextlib.suppress(OSError):
            self._file.close()
        self._file = (self.folder / "records").open("r+b")
        os.truncate(self.folder / "records", self._end)

    def read(self, key: Key, begin: int = 0, length: int | None = None) -> bytes:
        """The content of a record, or a part of it."""
        place = self._places[key]
        self._file.seek(place.offset + begin)
        return self._file.read(place.length - begin if length is None else length)

    def close(self) -> None:
        """Let go of the file; it stays."""
        self._file.close()

    def remove(self) -> None:
        """Close and delete it: the slide is finished."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

"""Curves of a run that goes on: what was logged after its last save is logged again, and must not stand there twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def forget_later(folder: Path, ends: Mapping[str, float], cycle: int) -> None:
    """Take out of TensorBoard's files in `folder` what a run that goes on will write anew.

    ends: what a tag's name begins with, before its '/' -> the first step that is still to come. Other tags are numbered
    by cycle, and `cycle` is the first that is still to come. Files are written anew under a temporary name and renamed;
    a record that was cut off is left out.
    """
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    def is_kept(record: bytes) -> bool:
        event = Event.FromString(record)
        tags = [value.tag.partition("/")[0] for value in event.summary.value]
        return all(event.step < ends.get(tag, cycle) for tag in tags)

    for path in sorted(folder.glob("events.out.tfevents.*")):
        records = list(RawEventFileLoader(str(path)).Load())
        kept = [record for record in records if is_kept(record)]
        if len(kept) == len(records):
            continue
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            writer = RecordWriter(file)
            for record in kept:
                writer.write(record)
        partial.replace(path)

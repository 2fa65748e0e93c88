"""Several large files that appear together, or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType

from infer.writers import TEMPORARY


class StagedFiles:
    """Files are written under temporary names; leaving the context without an error renames them, in the order in which
    they were asked for. After an error none of them is there. Raises OSError where the disk refuses.
    """

    def __init__(self) -> None:
        self._temporary: dict[Path, Path] = {}

    def __enter__(self) -> StagedFiles:
        return self

    def path(self, final: Path) -> Path:
        """Where to write the file that will be `final`."""
        final.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{final.name}."
        for leftover in final.parent.iterdir():  # of a run that was killed
            if leftover.name.startswith(prefix) and leftover.suffix == TEMPORARY:
                leftover.unlink(missing_ok=True)
        self._temporary[final] = final.with_name(f"{prefix}{os.getpid()}{TEMPORARY}")
        return self._temporary[final]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self._commit()
            finally:
                self._discard()
        else:
            self._discard()

    def _commit(self) -> None:
        for temporary in self._temporary.values():
            with temporary.open("rb+") as stream:
                os.fsync(stream.fileno())
        for final, temporary in self._temporary.items():
            temporary.replace(final)

    def _discard(self) -> None:
        for temporary in self._temporary.values():
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

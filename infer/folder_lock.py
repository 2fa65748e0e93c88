"""One run at a time on a folder of results. The system lets go of the lock when a run ends, however it ends."""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from hovernet_cyclic.core.errors import RecipeError

_NAME = ".lock"


class FolderLock:
    """Held within its context. Raises RecipeError where another run holds it, or the folder cannot be written to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None

    def __enter__(self) -> FolderLock:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._file = (self._folder / _NAME).open("a+b")
        except OSError as error:
            raise RecipeError(
                f"{self._folder} may not be written to ({error.strerror}): give another folder, or change its rights."
            ) from error
        try:
            _take(self._file)
        except OSError as error:
            self._file.close()
            raise RecipeError(
                f"{self._folder} is being written to by another run: wait for it, or give another folder."
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        # The file stays: removing it could let two runs lock two files of one name.
        self._file.close()


def _take(file: BinaryIO) -> None:
    """Lock the file for this process; OSError where it is locked."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

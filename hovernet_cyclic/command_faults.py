"""What the run_* scripts say of a command line that cannot be used."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence


def path_fault(error: OSError) -> str:
    """What is wrong with a path that was given, in a sentence: a folder that may not be read, a name too long, ..."""
    if isinstance(error, BrokenPipeError):
        raise error  # no fault of a path: see exit_with
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for {error.filename}" if error.filename else ""
        return f"No space is left on the disk{where}: free some, and go on from what was finished."
    if error.filename is None:
        return f"A file could not be read or written to its end ({error.strerror or error}): check the disk."
    return f"{error.filename} cannot be used ({error.strerror}): give another path, or change its rights."


def option_fault(error: BaseException, words: Sequence[str], help_text: str) -> str:
    """What is wrong with a command line that docopt refused, in a sentence, and the usage.

    error: docopt's. words: those of the command line.
    """
    said, *usage = str(error).strip().splitlines()
    usage = [said, *usage] if said.startswith("Usage") else usage
    if said.startswith(("Usage", "Warning")):  # docopt says no more than that something does not fit
        known = re.findall(r"(?m)^ +(?:-h )?(--\w+)", help_text)
        names = [word.partition("=")[0] for word in words if word.startswith("-")]
        unknown = next((name for name in names if name not in (*known, "-h")), None)
        said = (
            f"There is no option {unknown}."
            if unknown
            else "Options are missing, or there are words that belong to none."
        )
    return "\n".join([said, *usage])

"""What the run_* scripts share: how they end, and what they take for a number."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hovernet_cyclic.core.errors import RecipeError


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run `main` and leave with its exit code; quietly, with 141, where the reader of a pipe has gone."""
    try:
        try:
            code = main()
        finally:
            sys.stdout.flush()  # here, and not in the interpreter's own ending, so that it can be caught
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered goes nowhere
        code = 141
    sys.exit(code)


def whole_number(option: str, text: str, lowest: int = 0, highest: int = 10**9) -> int:
    """The number given with an option such as '--seed'. Raises RecipeError for others and those out of its range."""
    number = int(text[-10:]) if re.fullmatch("0*[0-9]{1,10}", text) else -1  # int() refuses thousands of zeros
    if not lowest <= number <= highest:
        raise RecipeError(f"{option}={text}: give a whole number from {lowest} to {highest}.")
    return number


def is_one_of_several() -> bool:
    """Whether this process was started as one of several that work together, as torchrun does and says."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def leads() -> bool:
    """Whether this process talks: the only one there is, or the first of several."""
    return not is_one_of_several() or int(os.environ["RANK"]) == 0


def open_on_screen(path: Path) -> bool:
    """Open a file in the program that the desktop has for it; returns whether there is a screen and such a program.

    A run whose output goes to a file or a pipe has no one in front of it, and opens nothing.
    """
    opener = _opener() if sys.stdout.isatty() else None
    if opener is None:
        return False
    try:
        subprocess.Popen([*opener, str(path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError:
        return False
    return True


def _opener() -> list[str] | None:
    """The desktop's command that opens a file, None where there is no desktop."""
    if sys.platform == "darwin":
        return ["open"]
    if sys.platform == "win32":
        return ["cmd", "/c", "start", ""]
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return ["xdg-open"] if screen and shutil.which("xdg-open") else None

"""How the run_* scripts end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn


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

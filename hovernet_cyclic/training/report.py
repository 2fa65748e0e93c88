"""LOG_DIR/report.html: one page on what a run learnt from, what came of it and why, to be opened in any browser.

It is made of what lies in the run's folder, so it can be made anew at any time, and what is missing there is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.training.report_page import page_of
from hovernet_cyclic.training.report_pictures import gallery_section, scores_section
from hovernet_cyclic.training.report_sections import (
    curves_section,
    cycles_section,
    head_section,
    origin_section,
    recipe_section,
    time_section,
)
from hovernet_cyclic.training.run_dir import RECIPE_FILE, RunDir
from hovernet_cyclic.training.run_facts import RunFacts

REPORT_FILE = "report.html"
SECTIONS = (
    head_section,
    cycles_section,
    scores_section,
    gallery_section,
    curves_section,
    time_section,
    recipe_section,
    origin_section,
)


def write_report(run: RunDir) -> Path:
    """Write report.html of what the run's folder holds now. Raises RecipeError where it holds no run, or OSError."""
    if not any((run.path / name).is_file() for name in (RECIPE_FILE, "state.tar", "net.tar")):
        raise RecipeError(f"{run.path}: there is no run here to report on: give the --log_dir of one.")
    facts = RunFacts.read(run)
    title = f"{facts.recipe.get('name', 'A training run')}: {run.path.resolve().name}"
    page = page_of(title, [element for section in SECTIONS for element in section(facts)])
    path = run.path / REPORT_FILE
    partial = path.with_name(f".{REPORT_FILE}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(page.encode("utf-8"))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def report_run(run: RunDir, say: Callable[[str], None]) -> None:
    """As `write_report`, in the course of a run, which no fault of a page may end: `say` is told of it in a line."""
    try:
        write_report(run)
    except Exception as error:
        say(f"{run.path / REPORT_FILE} could not be written ({error}): run_train.py --report makes it anew.")

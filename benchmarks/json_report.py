"""What a benchmark found, on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write `report` as JSON under a temporary name and rename it."""
    partial_file = path.with_name(f".{path.name}.tmp")
    partial_file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    partial_file.replace(path)

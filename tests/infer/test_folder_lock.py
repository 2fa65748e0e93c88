import subprocess
import sys
from pathlib import Path

import pytest

from hovernet_cyclic.core.errors import RecipeError
from infer.folder_lock import FolderLock

ROOT = Path(__file__).parents[2]
HOLD = """
import pathlib, sys
from infer.folder_lock import FolderLock
with FolderLock(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    sys.stdin.read()
"""


def test_one_run_at_a_time_and_a_killed_one_lets_go(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RecipeError, match="out is being written to by another run"), FolderLock(tmp_path / "out"):
        pass
    holder.kill()
    holder.wait()
    with FolderLock(tmp_path / "out"):
        pass
    with FolderLock(tmp_path / "out"):
        pass


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecipeError, match="may not be written to"), FolderLock(tmp_path / "file" / "out"):
        pass

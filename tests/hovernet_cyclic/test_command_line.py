"""How the scripts end, and what they open."""

import os
import sys
from pathlib import Path

import pytest

from hovernet_cyclic import command_line
from hovernet_cyclic.core.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "lowest", "number"), [("0", 0, 0), ("7", 1, 7), ("1000000000", 0, 10**9), ("000000000000012", 0, 12)]
)
def test_a_whole_number_is_read(text, lowest, number):
    assert command_line.whole_number("--seed", text, lowest) == number


@pytest.mark.parametrize("text", ["", "-1", "1.5", "1e3", "x", " 3", "\u0663", "1000000001", "9" * 40, "0"])
def test_other_numbers_are_told_with_their_option(text):
    with pytest.raises(RecipeError, match=f"--images={text}: give a whole number from 1 to 1000000000"):
        command_line.whole_number("--images", text, 1)


def test_a_screen_is_used_where_there_is_one_and_a_person_in_front_of_it(tmp_path, monkeypatch):
    (tmp_path / "xdg-open").write_text(f"#!/bin/sh\necho \"$1\" > '{tmp_path}/opened'\n")
    (tmp_path / "xdg-open").chmod(0o755)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DISPLAY", ":9")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert not command_line.open_on_screen(Path("sheet.png")), "output goes to no terminal"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    processes = []
    monkeypatch.setattr(command_line.subprocess, "Popen", lambda *args, **more: processes.append(args[0]))
    assert command_line.open_on_screen(Path("sheet.png")) and processes == [["xdg-open", "sheet.png"]]
    monkeypatch.delenv("DISPLAY")
    assert not command_line.open_on_screen(Path("sheet.png"))

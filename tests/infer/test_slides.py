"""Many slides: what is finished, what fails, what goes on."""

import dataclasses
import os
import re
import shutil

import cv2
import numpy as np
import pytest
import tifffile

from benchmarks.slides import Threshold
from dataloader.images import write_png
from hovernet_cyclic.core.errors import RecipeError, SlideError
from infer.folder_lock import FolderLock
from infer.journal import Journal
from infer.slide_estimate import choose_window, choose_workers, duration, largest_patch, memory_bytes, size
from infer.slide_outputs import SlideFolder
from infer.slide_plan import SlideRequest
from infer.slides import SlideSettings, dry_run, list_slides, segment_and_report, segment_slides
from infer.type_info import default_type_info

NUCLEI = [(60, 70, 9), (60, 250, 12), (200, 140, 10), (255, 255, 8), (256, 330, 8)]  # row, column, radius


class Counting(Threshold):
    """Counts the windows that it is asked for."""

    def __init__(self):
        self.windows = 0

    def cell(self, whole):
        return 256, 256

    def begin(self, pixels):
        self.windows += 1
        return super().begin(pixels)


def picture(path, nuclei=NUCLEI, shape=(420, 400)):
    image = np.full((*shape, 3), (226, 178, 206), np.uint8)
    for row, column, radius in nuclei:
        cv2.circle(image, (column, row), radius, (108, 72, 140), -1)
    write_png(path, image)


@pytest.fixture
def place(tmp_path):
    """Three slides, of which one is damaged."""
    picture(tmp_path / "in" / "first.png")
    picture(tmp_path / "in" / "second.png", NUCLEI[:2])
    (tmp_path / "in" / "torn.svs").write_bytes(b"II*\0")
    (tmp_path / "in" / "notes.txt").write_text("x")
    return tmp_path


def settings_of(place, **changes):
    request = SlideRequest(0.5, slide_mpp=0.5, find_tissue=False, window=256)
    outputs = SlideFolder(place / "out", default_type_info(None))
    settings = SlideSettings(request, outputs, place / "out" / ".journal", {"network": 1}, quiet=True)
    return dataclasses.replace(settings, **changes)


def run(place, segmenter=None, **changes):
    slides = list_slides(str(place / "in")).slides
    return list(segment_slides(slides, [segmenter or Counting()], settings_of(place, **changes)))


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")


def test_slides_are_listed_by_what_they_are(place):
    files = list_slides(str(place / "in"))
    assert [slide.name for slide in files.slides] == ["first", "second", "torn"]
    assert [path.name for path in files.left_out] == ["notes.txt"]
    assert list_slides(str(place / "in" / "first.png")).slides[0].name == "first"
    assert list_slides("s3://bucket/a.ome.tif").slides[0].name == "a"
    (place / "in" / "group.ome.zarr").mkdir()
    assert "group" in [slide.name for slide in list_slides(str(place / "in")).slides]
    (place / "in" / "First.tif").write_bytes(b"x")
    with pytest.raises(SlideError, match="same name"):
        list_slides(str(place / "in"))
    for wrong, sentence in (
        ("nowhere", "does not exist"),
        ("in/notes.txt", "is no slide"),
        ("empty", "holds no slide"),
    ):
        (place / "empty").mkdir(exist_ok=True)
        with pytest.raises(SlideError, match=sentence):
            list_slides(str(place / wrong))


def test_one_that_fails_is_named_and_the_others_go_on(place, capsys):
    first, second, torn = run(place)
    assert (first.state, first.nuclei, second.state, second.nuclei) == ("done", 5, "done", 2)
    assert torn.state == "failed" and torn.fault.startswith(str(place / "in" / "torn.svs"))
    kinds = ("density", "geojson", "info", "json", "overlay", "parquet")
    assert {name.split("/")[0] for name in names(place / "out")} == set(kinds)
    assert not list((place / "out" / ".journal").glob("*/*")), "a finished slide leaves no journal"
    slides = list_slides(str(place / "in")).slides
    faults = segment_and_report(slides, [Counting()], settings_of(place))
    assert faults == [torn.fault]
    printed = capsys.readouterr()
    assert [line.split()[:3] for line in printed.out.splitlines()[1:]] == [
        ["first", "skipped", "5"],
        ["second", "skipped", "2"],
        ["torn", "failed", "0"],
    ]
    assert torn.fault in printed.err


def test_a_link_to_a_slide_that_is_gone_is_named(place):
    try:
        (place / "in" / "gone.svs").symlink_to(place / "nowhere.svs")
    except OSError:
        pytest.skip("no links here")
    (gone,) = (result for result in run(place) if result.name == "gone")
    assert gone.state == "failed" and "gone.svs is not there" in gone.fault


def test_finished_slides_are_skipped_unless_anything_differs(place):
    run(place)
    idle = Counting()
    assert [result.state for result in run(place, idle)] == ["skipped", "skipped", "failed"] and idle.windows == 0
    for changes in (
        {"network": {"network": 2}},
        {"request": SlideRequest(0.5, slide_mpp=0.5, find_tissue=False, window=256, region=(0, 0, 200, 200))},
    ):
        assert [result.state for result in run(place, **changes)] == ["done", "done", "failed"]
    wider = SlideRequest(0.5, slide_mpp=0.5, find_tissue=False, window=512)
    run(place)
    assert run(place, request=wider)[0].state == "skipped", "the result does not depend on the windows"
    picture(place / "in" / "second.png", NUCLEI[:3])
    os.utime(place / "in" / "second.png", ns=(1, 1))
    assert [(result.state, result.nuclei) for result in run(place)][1] == ("done", 3)


def test_a_result_of_which_a_file_is_missing_is_made_again(place):
    run(place)
    (place / "out" / "geojson" / "first.geojson").unlink()
    assert [result.state for result in run(place)] == ["done", "skipped", "failed"]
    with_thumb = dataclasses.replace(settings_of(place).outputs, save_thumb=True)
    assert run(place, outputs=with_thumb)[0].state == "done" and (place / "out" / "thumb" / "first.png").is_file()


def test_a_mask_drawn_anew_under_the_same_name_counts(place):
    request = SlideRequest(0.5, slide_mpp=0.5, window=256, mask_dir=place / "masks")
    for columns, found in ((20, 2), (40, 5)):  # of 40, which stand for 400 px
        mask = np.zeros((42, 40), np.uint8)
        mask[:, :columns] = 255
        for name in ("first", "second"):
            write_png(place / "masks" / f"{name}.png", mask)
        assert run(place, request=request)[0][:3] == ("first", "done", found)
        assert run(place, request=request)[0].state == "skipped"


def test_a_full_disk_fails_the_slide_keeps_what_is_done_and_leaves_nothing_half_written(place, monkeypatch):
    picture(place / "in" / "first.png", shape=(1250, 400))  # windows: 5 x 2
    append, room = Journal.append, [7]

    def full(self, key, content):
        room[0] -= 1
        if room[0] < 0:
            raise OSError(28, "No space left on device")
        append(self, key, content)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", full)
        results = run(place)
    assert all(result.state == "failed" for result in results)
    assert "its results cannot be written (No space left on device)" in results[0].fault
    assert not (place / "out" / "json").exists()
    assert not [name for name in names(place / "out") if "strips" in name], "they would fill the disk further"
    segmenter = Counting()
    again = run(place, segmenter)
    assert [result.state for result in again] == ["done", "done", "failed"] and again[0].nuclei == 5
    assert segmenter.windows == 2 * 3 + 4, "of the first slide, the three rows that tiles still need"


def test_a_disk_that_fills_up_at_the_very_end(place, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("infer.slide_pictures.png", full)
        assert run(place)[0].state == "failed"
    assert not [name for name in names(place / "out") if ".journal" not in name]
    idle = Counting()
    assert run(place, idle)[0].state == "done" and idle.windows <= 4, "only the files were missing"


def test_two_runs_on_one_folder_do_not_meet(place):
    with FolderLock(place / "out"), pytest.raises(RecipeError, match="another run"):
        run(place)
    assert not names(place / "out")
    assert run(place)[0].state == "done"


def test_a_slide_that_vanishes_meanwhile(place):
    class Taking(Counting):
        def begin(self, pixels):
            shutil.rmtree(place / "in", ignore_errors=True)
            return super().begin(pixels)

    with tifffile.TiffWriter(place / "in" / "a.ome.tif", ome=True) as file:
        file.write(np.full((420, 400, 3), 200, np.uint8), photometric="rgb", tile=(64, 64), metadata={"axes": "YXS"})
    results = run(place, Taking())
    assert [result.name for result in results] == ["a", "first", "second", "torn"]
    # The one in hand is open, and is read to its end or fails by name; the others are gone.
    assert results[0].state in ("done", "failed")
    assert all(result.state == "failed" and "is not there" in result.fault for result in results[1:])


def test_an_unexpected_fault_is_one_sentence_too(place):
    class Faulty(Counting):
        def begin(self, pixels):
            raise MemoryError if self.windows else ZeroDivisionError("x")

    fault = run(place, Faulty())[0].fault
    assert "first" in fault and "ZeroDivisionError" in fault and len(fault.splitlines()) == 1


def test_dry_run_reads_no_more_than_it_must_and_writes_nothing(place, capsys):
    faults = dry_run(list_slides(str(place / "in")).slides, [Counting()], settings_of(place))
    assert len(faults) == 1 and "torn.svs" in faults[0]
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("first: 400 x 420 px at 0.5 um/px (from given), level 0 as it is, the whole slide")
    assert "4 windows" in lines[0] and lines[-1].startswith("Altogether: 8 windows")
    assert not (place / "out").exists()


def test_windows_follow_from_what_is_asked():
    assert choose_window(None, None, 0, 0) == 2048 and choose_window(1000, None, 0, 0) == 1000
    assert choose_window(100, None, 0, 0) == 512
    small = choose_window(None, 1.5, 0, 0)
    assert 512 <= small < 2048 and memory_bytes(small, 0, 0, 0.6 * 2**30) <= 1.5 * 2**30
    with pytest.raises(RecipeError, match=r"--max_memory=0\.5 is too small"):
        choose_window(None, 0.5, 0, 0)
    with pytest.raises(RecipeError) as refused:
        choose_window(None, 0.1, 0, 0)
    least = float(re.search(r"([0-9.]+) GiB are needed", str(refused.value)).group(1))
    assert choose_window(None, least, 0, 0) == 512
    with pytest.raises(RecipeError):
        choose_window(None, least - 0.1, 0, 0)
    assert choose_window(None, 1.5, 0, 0, views=4) < small  # maps of several views take room too
    assert choose_workers(3, "cpu", None, 0) == 3 and choose_workers(None, "cpu", 1.0, 0) == 0
    assert 0 <= choose_workers(None, "cpu", None, 0) <= choose_workers(None, "cuda", None, 0) <= 8
    assert largest_patch("small", "cuda", None) == 2048 > largest_patch("small", "cpu", None) > 1000
    assert largest_patch("small", "cpu", 1.0) < largest_patch("small", "cpu", 2.0)
    assert (duration(45), duration(600), duration(9000)) == ("45 s", "10 min", "2.5 h")
    assert (size(3e6), size(4.2e9)) == ("3 MB", "4.2 GB")

"""The report of a run: one file, whole, true to what the run left, and robust to what it did not."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

import config
import run_train
from dataloader.images import write_png
from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.training import report
from hovernet_cyclic.training.evaluate import score_run, show_scored
from hovernet_cyclic.training.gallery import boxes, sheet
from hovernet_cyclic.training.history import History
from hovernet_cyclic.training.report import report_run, write_report
from hovernet_cyclic.training.run_dir import RunDir, describe_run

VOID = {"meta", "img", "br", "hr", "input", "link"}
NASTY = "<b>&\"'é\u2028日本 \x1b[1m \udce4"
LARGEST = 8_000_000


class Page(HTMLParser):
    """Reads a page strictly: every tag that is opened is closed, in order."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.pictures, self.texts, self._open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href", "action", "data", "poster", "srcset") if name in values]
        self.pictures += [values["src"]] if tag == "img" else []
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" not in self._open:
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", "".join(self.texts))


def page_of(run):
    """The page of a run, after the checks that hold for each."""
    text = write_report(run).read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>") and len(text) < LARGEST
    assert "script" not in page.tags and "link" not in page.tags and "iframe" not in page.tags
    assert all(link.startswith("data:image/webp;base64,") for link in page.links)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert "default-src 'none'" in text and not list(run.path.glob(".report*"))
    return page


def decoded(source):
    data = np.frombuffer(base64.b64decode(source.partition(",")[2]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


@pytest.fixture
def run(tmp_path):
    """A folder with a finished run of three cycles, the last of which was undone, without training one."""
    run = RunDir(tmp_path / "run")
    recipe = {**config.folder().to_dict(), "num_cycles": 3, "seed": 77}
    versions = {"torch": "2.x", "numpy": "1.y"}
    about = {"recipe": recipe, "command": ["run_train.py", "--recipe=a b"], "data_dir": "my data", "versions": versions}
    run.path.mkdir()
    run.write_json("recipe.json", about)
    run.write_json("cycles.json", [cycle_row(1, 1000.4, True), cycle_row(2, 2345.6, True), cycle_row(3, 20.0, False)])
    for cycle in (1, 2, 3):
        add_gallery(run, cycle, [f"tile {cycle}"])
    history = History(run.path / "history.jsonl")
    history.add("start", time=1_700_000_000, command=["run_train.py", "--recipe=a b"], device="one CPU")
    history.add(
        "data", tiles=9, patches=55, positive=33, negative=22, groups=8, held_groups=2, held_patches=11, drawn=[]
    )
    for step in range(100):
        stage = f"cycle {1 + step // 40} front end"
        parts = {"patch": 2.0 / (1 + step), "new_term": 0.5}
        history.add("loss", stage=stage, curves="front_end", step=step, parts=parts)
    for cycle in (1, 2):
        history.add("stage", name=f"cycle {cycle} front end", seconds=90.0, steps=40, images=1280, waited=9.0, loss=0.5)
        history.add("labels", cycle=cycle, tiles=9, nuclei=4321, taught=0.371)
        history.add("patches", cycle=cycle, accuracy=0.912)
    history.close()
    run.net.write_bytes(b"")
    return run


def cycle_row(cycle, surplus, kept):
    outcome = "kept: as good" if kept else "rolled back to cycle 2: worse"
    return {
        "cycle": cycle,
        "found": surplus + 10,
        "false": 10.0,
        "surplus": surplus,
        "kept": kept,
        "reason": outcome,
        "seconds": 90.0,
    }


def add_gallery(run, cycle, names, side=40):
    rng = np.random.default_rng(cycle)
    rows = [[rng.integers(0, 255, (side, side, 3), np.uint8) for _ in range(4)] for _ in names]
    write_png(run.cycle(cycle) / "gallery.png", sheet(rows))
    index = [{"tile_id": name, "boxes": row} for name, row in zip(names, boxes(rows), strict=True)]
    run.write_json(f"cycle_{cycle}/gallery.json", index)
    return rows


def test_the_verdict_and_the_numbers_are_those_of_the_run(run):
    text = page_of(run).text
    assert "The product, net.tar, is the network of cycle 2 of 3: it finds 2,346 nuclei per mm²" in text
    assert "What came after it (cycle 3) was rolled back." in text and "to cycle 2: worse" in text
    for cell in ("1,000", "2,356", "4,321", "37 %", "91 %", "1.5"):  # score, found, trusted, taught, right, minutes
        assert cell in text, cell
    assert "55 patches (33 with a nucleus, 22 without) and 9 tiles without labels" in text
    assert "No drawn mask was read in training" in text and "Drawn masks were opened" not in text
    assert "torch 2.x, numpy 1.y" in text and "python run_train.py '--recipe=a b' on one CPU" in text
    assert "2 of these held out" in text and "2023-11-14 22:13 UTC" in text and "my data" in text
    assert "cycle 2 front end" in text and "10 %" in text, "the share of time that data was waited for"


def test_settings_that_differ_stand_beside_their_defaults(run):
    text = page_of(run).text
    assert re.search(r"(?<!\d)3 of \d+ settings differ", text)
    assert "seed7710" in text and "num_cycles32" in text and "front_end.steps_first400" in text


def test_each_curve_is_drawn_with_its_stages(run):
    text = write_report(run).read_text()
    assert text.count("<svg") == 3, "two terms and their sum"
    assert text.count('class="edge"') == 2 * 3 and ">cycle 3</text>" in text
    assert "new_term" in text and "is the patch labelled right" in text


def test_the_pictures_are_those_of_the_gallery(run):
    rows = add_gallery(run, 2, ["left", "right"], side=160)
    page = page_of(run)
    assert len(page.pictures) == 4 * (1 + 2 + 1)
    shown = decoded(page.pictures[4])
    assert shown.shape == (160, 160, 3)
    # noise is the worst case of any codec: compare the means of quarters
    for part in (np.s_[:80], np.s_[80:]):
        np.testing.assert_allclose(shown[part][..., ::-1].mean((0, 1)), rows[0][0][part].mean((0, 1)), atol=6)


@pytest.mark.parametrize(
    "missing",
    ["cycles.json", "history.jsonl", "cycle_2/gallery.png", "cycle_2/gallery.json", "recipe.json", "net.tar"],
)
@pytest.mark.parametrize("damage", [True, False])
def test_what_is_missing_or_damaged_is_left_out(run, missing, damage):
    if damage:
        (run.path / missing).write_bytes(b'{"torn": [1,')
    else:
        (run.path / missing).unlink()
    page_of(run)


def test_rows_that_know_little_do(run):
    run.write_json("cycles.json", [{"cycle": 1, "kept": False}, {"cycle": 2, "kept": False, "surplus": None}])
    assert "No cycle was kept" in page_of(run).text
    run.write_json("cycles.json", [{"cycle": 1, "kept": True, "surplus": None, "reason": "kept: no patches"}])
    assert "Not finished: 1 of 3 cycles are done. The best so far is cycle 1: no patches." in page_of(run).text
    run.write_json("cycles.json", [])
    text = page_of(run).text
    assert "No cycle is finished yet." in text and "Cycle 2, not finished" in text
    run.write_json("cycles.json", {"cycle": 1})
    page_of(run)


def test_a_resumed_run_tells_each_start_and_no_step_twice(run):
    before = write_report(run).read_text()
    history = History(run.path / "history.jsonl")
    history.add("start", time=1_700_090_000, command=["run_train.py", "--resume"], device="two GPUs")
    for step in range(50, 100):
        history.add("loss", stage="cycle 2 front end", curves="front_end", step=step, parts={"patch": 0.25})
    history.close()
    text = page_of(run).text
    assert "Begun 2023-11-14 22:13 UTC" in text and "Resumed 2023-11-15 23:13 UTC" in text
    assert "python run_train.py --resume on two GPUs" in text and "(is the patch labelled right), 0.25 at" in text
    assert before.count('class="axis"') == (run.path / "report.html").read_text().count('class="axis"')


def test_names_are_shown_as_they_are_and_never_as_html(run, tmp_path):
    about = run.read_json("recipe.json", {})
    nasty = {**about, "data_dir": NASTY, "command": [NASTY, f"--log_dir={NASTY}"]}
    nasty["recipe"] = {**about["recipe"], "name": NASTY, "log_dir": NASTY}
    moved = RunDir(shutil.copytree(run.path, tmp_path / "<i>&\"' é"))
    moved.write_json("recipe.json", nasty)
    add_gallery(moved, 2, [NASTY])
    row = {**cycle_row(2, 5.0, True), "reason": f"kept: {NASTY}"}
    moved.write_json("cycles.json", [row])
    page = page_of(moved)
    assert "b" not in page.tags and "i" not in page.tags
    # control characters and lone surrogates stand in no HTML file; the name is marked where they were
    shown = "<b>&\"'é\u2028日本 \ufffd[1m \ufffd"
    assert page.text.count(re.sub(r"\s+", " ", shown)) >= 5


def test_many_cycles_and_steps_stay_small(run):
    cycles = range(1, 41)
    rows = [cycle_row(cycle, float(cycle if cycle < 4 else 0), cycle < 4) for cycle in cycles]
    run.write_json("cycles.json", rows)
    for cycle in cycles:
        rich = cycle in (3, 39, 40)  # noise, which no codec makes small
        add_gallery(run, cycle, list("abcdef" if rich else "a"), side=320 if rich else 48)
    with (run.path / "history.jsonl").open("a") as stream:
        for step in range(20_000):
            event = {"kind": "loss", "stage": f"cycle {1 + step // 500} back end", "curves": "back_end", "step": step}
            stream.write(json.dumps({**event, "parts": {"np_bce": 1.0 / (1 + step)}}) + "\n")
    page = page_of(run)
    assert "Only 25 of 40 cycles are shown." in page.text
    assert "Cycle 3, kept: as good" in page.text, "the product's is shown"
    assert len(page.pictures) == 25 * 4, "of six rows of noise the first alone is shown"


def test_a_report_replaces_the_one_before_as_a_whole(run, monkeypatch):
    before = write_report(run).read_bytes()

    def full(path, data):
        with path.open("wb") as stream:
            stream.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_report(run)
    said = []
    report_run(run, said.append)
    assert len(said) == 1 and "report.html could not be written" in said[0] and "--report" in said[0]
    assert (run.path / "report.html").read_bytes() == before
    assert not [path for path in run.path.iterdir() if path.name.endswith(".tmp")]


def test_no_fault_of_a_page_ends_a_run(run, monkeypatch):
    def broken(facts):
        raise KeyError("a row without it")

    monkeypatch.setattr(report, "SECTIONS", (broken,))
    said = []
    report_run(run, said.append)
    assert "a row without it" in said[0]


def test_a_run_on_masks_says_so(run):
    about = run.read_json("recipe.json", {})
    about["recipe"] |= {"supervision": "masks", "num_cycles": 1}
    run.write_json("recipe.json", about)
    row = {"cycle": 1, "kept": True, "reason": "600 steps on drawn masks", "steps": 600, "seconds": 60.0}
    run.write_json("cycles.json", [row])
    text = page_of(run).text
    assert "the network after 600 steps on drawn masks" in text and "It learnt from the drawn masks of 9 tiles." in text
    assert "No drawn mask" not in text and "held out of training" not in text
    run.write_json("cycles.json", [{**row, "steps": 100}])
    assert "Not finished: 100 of 600 steps are done." in page_of(run).text


def test_a_mixed_run_names_the_masks_it_read(run):
    about = run.read_json("recipe.json", {})
    about["recipe"] |= {"supervision": "mixed"}
    about["recipe"]["net"]["pretrained"] = "weights/resnet.pth"
    run.write_json("recipe.json", about)
    history = History(run.path / "history.jsonl")
    history.add("data", tiles=9, patches=5, positive=3, negative=2, drawn=["t<1>", "t2"])
    history.close()
    text = page_of(run).text
    assert "7 tiles without labels, and from the drawn masks of 2 tiles (t<1>, t2)." in text
    assert "No other drawn mask was read in training. The encoder began from the weights of weights/resnet.pth." in text


def test_a_real_run_is_reported_and_scored(finished, tiny, drawn_once, tmp_path, capsys):
    assert (finished.path / "report.html").exists(), "written by the run itself"
    run = RunDir(shutil.copytree(finished.path, tmp_path / "run"))
    describe_run(run, tiny(config.folder()), str(drawn_once))
    score_run(str(run.path), str(drawn_once), "cpu")
    show_scored(str(run.path), str(drawn_once), "cpu")
    capsys.readouterr()
    assert run_train.main(["--report", f"--log_dir={run.path}"]) == 0
    assert capsys.readouterr().out == f"The report: {run.path / 'report.html'}\n"
    page = page_of(run)
    rows = run.read_json("cycles.json", [])
    best = [row["cycle"] for row in rows if row["kept"]][-1]
    assert f"the network of cycle {best} of 2" in page.text and "Drawn masks were opened after training" in page.text
    for row in rows:
        assert f"{row['found']:,.0f}" in page.text
    scores = run.read_json("scores.json", {})
    for split in ("valid", "test"):
        assert f"{scores[split][f'cycle {best}']['mean']['aji']:.3f}" in page.text
        assert f"{split}: the only tile, {split}_00" in page.text
    assert len(page.pictures) == 2 * 2 * 4 + 2 * 3, "two tiles of two cycles, and a scored tile of two splits"
    assert all(name in page.text for name in ("np_dice", "negative (evidence", "cycle 2 back end 2/2", "cycle 1 score"))
    assert "32 patches (16 with a nucleus, 16 without) and 2 tiles without labels" in page.text


def test_a_folder_without_a_run_has_no_report(tmp_path, capsys):
    with pytest.raises(RecipeError, match="no run here"):
        write_report(RunDir(tmp_path))
    assert run_train.main(["--report", f"--log_dir={tmp_path / 'none'}"]) == 2
    assert "no run here" in capsys.readouterr().err and not list(tmp_path.iterdir())


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium on this machine to open the report in")
def test_a_browser_opens_it_without_complaint(run, tmp_path):
    path = write_report(run)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=400,2000", "--enable-logging=stderr"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run([BROWSER, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "CONSOLE" not in done.stderr
    assert "The product, net.tar" in done.stdout and done.stdout.count("<svg") == 3

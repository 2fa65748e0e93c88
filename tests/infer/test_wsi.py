"""Slides from end to end, but for the network: images here hold their own raw maps, so that every pixel is known."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import ndimage

from dataloader.images import write_png
from hovernet_cyclic.core.errors import SlideError, UnreadableRegionError
from hovernet_cyclic.core.geometry import within
from hovernet_cyclic.core.label_maps import extract_nuclei
from hovernet_cyclic.core.types import Box, RawMaps
from infer.journal import Journal
from infer.slide_finish import SlideFinisher
from infer.slide_outputs import SlideFolder
from infer.slide_plan import MARGIN, SlideRequest, plan_slide
from infer.type_info import default_type_info
from infer.wsi import SlideRun, load_window, open_clusters
from models.hovernet.post_proc import segment

ROOT = Path(__file__).parents[2]


def decode(image):
    """RawMaps of an image: red is the probability, green and blue are h and v, and the type is in the lowest bits."""
    values = image.astype(np.float32)
    hv_map = np.stack([(values[..., 1] - 128) / 120, (values[..., 2] - 128) / 120], axis=-1)
    type_map = image[..., 0] % 3
    probs = np.eye(3, dtype=np.float16)[type_map]
    return RawMaps(values[..., 0] / 255, hv_map, type_map.astype(np.uint8), probs)


class Decoder:
    """A network that reads its answer off the image."""

    margin = 8

    def cell(self, whole):
        return 64, 64

    def raw_maps_of(self, pixels):
        return decode(pixels.image[within(pixels.wanted, pixels.box)])

    def begin(self, pixels):
        return lambda: self.raw_maps_of(pixels)


def tissue_like(shape, seed, size, sparse):
    """uint8 (H, W, 3): smooth noise, so clusters of every shape. size: of blobs, px; sparse: how few there are."""
    rng = np.random.default_rng(seed)

    def noise(sigma):
        field = ndimage.gaussian_filter(rng.standard_normal(shape), sigma)
        return (field - field.mean()) / field.std()

    channels = [127 + 80 * (noise(size) - sparse), 128 + 80 * noise(3), 128 + 80 * noise(3)]
    return np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)


def run_slide(path, root, window, cache=None, smallest=10, **request):
    """Segment one image as a slide. Returns the content of its info file. smallest: px."""
    wanted = SlideRequest(mpp=0.5, slide_mpp=0.5, window=window, **{"find_tissue": False, **request})
    plan = plan_slide(str(path), path.stem, wanted, Decoder().cell)
    journal = Journal((cache or root / ".journal") / path.stem, {**plan.identity, "window": window})
    finisher = SlideFinisher(plan.view.shape, plan.view.mpp, 3, plan.region, smallest)
    run = SlideRun(plan, [Decoder()], finisher, journal)
    run.segment()
    clusters = len(open_clusters(journal))
    info = SlideFolder(root, default_type_info(3)).write(plan, journal, plan.identity)
    journal.remove()
    return {**info, "open clusters": clusters}


def found(root, name="slide"):
    """What the JSON holds, in a form that can be compared."""
    nuclei = json.loads((root / "json" / f"{name}.json").read_text())["nuc"].values()
    return sorted(
        (
            tuple(round(value, 6) for value in one["centroid"]),
            tuple(map(tuple, one["bbox"])),
            np.array(one["contour"], np.int32).tobytes(),
            one["type"],
            round(one["type_prob"], 9),
        )
        for one in nuclei
    )


def expected(image, smallest=10):
    """The same, of the image post-processed at once, as tile mode does it."""
    raw = decode(image)
    return sorted(
        (
            tuple(round(value, 6) for value in one.centroid),
            ((one.bbox.top, one.bbox.left), (one.bbox.bottom, one.bbox.right)),
            one.contour.tobytes(),
            one.type_id,
            round(one.type_prob, 9),
        )
        for one in extract_nuclei(segment(raw, smallest=smallest), raw.type_map, raw.type_probs).values()
    )


def files_of(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@settings(max_examples=8)
@given(
    st.integers(257, 700),
    st.integers(257, 700),
    st.integers(0, 10**6),
    st.sampled_from([4, 7, 10]),
    st.sampled_from([-0.1, 0.1, 0.5, 1.2]),
    st.sampled_from([256, 320, 448]),
)
@example(730, 784, 1025, 8.661067454326986, -0.00813909256933798, 448)  # a tile that sees two parts of one cluster
def test_a_slide_is_what_the_whole_image_is(tmp_path_factory, height, width, seed, size, sparse, window):
    folder = tmp_path_factory.mktemp("whole")
    image = tissue_like((height, width), seed, size, sparse)
    write_png(folder / "slide.png", image)
    smallest = (10, 45, 80)[seed % 3]
    info = run_slide(folder / "slide.png", folder / "out", window, smallest=smallest)
    assert info["nuclei_in_clusters_too_large"] == 0
    assert found(folder / "out") == expected(image, smallest)


def test_files_do_not_depend_on_how_the_slide_is_cut(tmp_path):
    image = tissue_like((600, 700), 5, 7, 0.2)
    write_png(tmp_path / "slide.png", image)
    infos = [run_slide(tmp_path / "slide.png", tmp_path / f"out{window}", window) for window in (256, 320, 1024)]
    assert infos[0]["open clusters"] > 0 == infos[2]["open clusters"], "no cluster crosses a seam: the test is too easy"
    first, second, third = (files_of(tmp_path / f"out{window}") for window in (256, 320, 1024))
    assert first == second == third
    assert set(first) == {
        *(f"{kind}/slide.png" for kind in ("density", "overlay")),
        *(f"{kind}/slide.json" for kind in ("info", "json")),
        "geojson/slide.geojson",
        "parquet/slide.parquet",
    }


def test_a_region_holds_what_the_slide_holds_there(tmp_path):
    image = tissue_like((600, 700), 8, 6, 0.8)
    write_png(tmp_path / "slide.png", image)
    run_slide(tmp_path / "slide.png", tmp_path / "all", 256)
    run_slide(tmp_path / "slide.png", tmp_path / "part", 256, region=(150, 200, 333, 222))
    inside = [one for one in found(tmp_path / "all") if 150 <= one[0][0] < 483 and 200 <= one[0][1] < 422]
    assert found(tmp_path / "part") == inside and len(inside) > 0
    with pytest.raises(SlideError, match="--region lies outside of the slide, which is 700 x 600 px"):
        run_slide(tmp_path / "slide.png", tmp_path / "no", 256, region=(700, 0, 10, 10))


def test_a_cluster_too_large_is_told_and_nothing_is_found_twice(tmp_path, monkeypatch):
    monkeypatch.setattr("infer.wsi.GROWTH", 32)
    image = tissue_like((700, 700), 3, 6, -3.0)  # all of it is one cluster
    write_png(tmp_path / "slide.png", image)
    plan = plan_slide(
        str(tmp_path / "slide.png"),
        "slide",
        SlideRequest(0.5, slide_mpp=0.5, find_tissue=False, window=256),
        Decoder().cell,
    )
    journal = Journal(tmp_path / "journal", {})
    run = SlideRun(
        plan, [Decoder()], SlideFinisher(plan.view.shape, plan.view.mpp, 3, plan.region), journal, largest=300**2
    )
    run.segment()
    folder = SlideFolder(tmp_path / "out", default_type_info(3))
    info = folder.write(plan, journal, {})
    assert info["nuclei_in_clusters_too_large"] > 0
    covered = np.zeros((700, 700), np.int32)
    import cv2

    for one in json.loads(folder.path("json", "slide").read_text())["nuc"].values():
        mask = np.zeros_like(covered, np.uint8)
        cv2.fillPoly(mask, [np.array(one["contour"], np.int32)], 1)
        covered += mask
    # Each nucleus is one, and where two cut-outs drew its border differently they overlap but little.
    assert (covered > 1).mean() < 0.02 < (covered > 0).mean()


class Broken:
    """A slide whose rows 300 to 400, columns 100 to 200 cannot be read."""

    def __init__(self, reader):
        self._reader = reader
        self.path, self.mpp, self.magnification, self.origin = reader.path, None, None, (0, 0)
        self.level_shapes = reader.level_shapes

    def read(self, level, box):
        if box.top < 400 and box.bottom > 300 and box.left < 200 and box.right > 100:
            raise UnreadableRegionError("torn")
        return self._reader.read(level, box)

    def close(self):
        pass


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path, monkeypatch):
    from dataloader.slides import open_slide

    image = tissue_like((700, 700), 4, 6, 1.0)
    write_png(tmp_path / "slide.png", image)
    whole = expected(image)
    monkeypatch.setattr("infer.slide_plan.open_slide", lambda path: Broken(open_slide(path)))
    info = run_slide(tmp_path / "slide.png", tmp_path / "out", 320)
    assert info["unreadable"] == [[0, 256, 256, 64], [0, 320, 256, 192]]  # squares of 256 px, cut by the windows
    far = [one for one in whole if one[0][0] > 300 or one[0][1] < 200 or one[0][1] > 560]
    assert set(far) <= set(found(tmp_path / "out")) and far


KILLED = """
    import sys, os, signal
    sys.path.insert(0, {tests!r})
    import test_wsi
    from pathlib import Path
    from infer.journal import Journal
    append, left = Journal.append, [{after}]
    def stop(self, key, content):
        if left[0] == 0:
            self._file.seek(self._end)
            self._file.write(b"hvnt" + content[:{torn}])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        append(self, key, content)
    Journal.append = stop
    test_wsi.run_slide(Path({slide!r}), Path({out!r}), 256)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
@pytest.mark.parametrize(("after", "torn"), [(0, 0), (4, 900)])
def test_a_killed_run_goes_on_and_ends_alike(tmp_path, after, torn):
    image = tissue_like((600, 700), 5, 7, 0.2)
    write_png(tmp_path / "slide.png", image)
    run_slide(tmp_path / "slide.png", tmp_path / "undisturbed", 256)
    slide, out = str(tmp_path / "slide.png"), str(tmp_path / "out")
    script = KILLED.format(tests=str(Path(__file__).parent), after=after, torn=torn, slide=slide, out=out)
    code = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert code.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "json").exists()
    before = (tmp_path / "out" / ".journal" / "slide" / "records").read_bytes()
    seen = []
    original = Journal.append
    try:
        Journal.append = lambda self, key, content: (seen.append(key), original(self, key, content))[1]
        run_slide(tmp_path / "slide.png", tmp_path / "out", 256)
    finally:
        Journal.append = original
    assert len(before) > 0 and len(set(seen)) == len(seen)
    undisturbed, resumed = files_of(tmp_path / "undisturbed"), files_of(tmp_path / "out")
    assert undisturbed == {name: data for name, data in resumed.items() if ".journal" not in name}


def test_a_window_that_is_gone_fails_the_slide_and_keeps_what_is_done(tmp_path):
    image = tissue_like((600, 300), 5, 7, 0.8)
    write_png(tmp_path / "slide.png", image)
    plan = plan_slide(
        str(tmp_path / "slide.png"),
        "slide",
        SlideRequest(0.5, slide_mpp=0.5, find_tissue=False, window=256),
        Decoder().cell,
    )
    read = plan.reader.read

    def vanish(level, box):
        if box.top > 200:
            raise SlideError("slide.png vanished")
        return read(level, box)

    plan.reader.read = vanish
    journal = Journal(tmp_path / "journal", {})
    finisher = SlideFinisher(plan.view.shape, plan.view.mpp, 3, plan.region)
    with pytest.raises(SlideError, match="vanished"):
        SlideRun(plan, [Decoder()], finisher, journal).segment()
    kept = list(journal)
    assert kept and all(key.row == 0 for key in kept)
    journal.close()
    plan.reader.read = read
    again = Journal(tmp_path / "journal", {})
    assert list(again) == kept
    SlideRun(plan, [Decoder()], finisher, again).segment()
    SlideFolder(tmp_path / "out", default_type_info(3)).write(plan, again, {})
    assert found(tmp_path / "out") == expected(image)


def test_a_window_reads_as_far_as_the_network_sees():
    class Reader:
        level_shapes = ((100, 90),)

        def read(self, level, box):
            return np.zeros((box.height, box.width, 3), np.uint8)

    from dataloader.slides import SlideView

    view = SlideView(Reader(), 0, (1.0, 1.0), (100, 90), (0.5, 0.5))
    pixels, unreadable = load_window(view, Box(64, 0, 100, 64), 10)
    assert pixels.box == Box(54, 0, 100, 74) and pixels.image.shape == (46, 74, 3) and unreadable == ()
    assert MARGIN * 2 <= 256

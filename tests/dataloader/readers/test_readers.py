"""Every back-end on a small file in its true format, and on the same file damaged."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr

from dataloader.images import write_png
from dataloader.readers.faults import plausible_mpp
from dataloader.readers.openslide import OpenSlideReader
from dataloader.readers.tiff import TiffReader
from dataloader.slides import open_slide, slide_scale
from hovernet_cyclic.core.errors import SlideError, UnreadableRegionError
from hovernet_cyclic.core.types import Box

DATA = Path(os.environ.get("HOVERNET_CYCLIC_DATA", Path(__file__).parents[4] / "shared" / "data")) / "slides"
ROOT = Path(__file__).parents[3]
SIDE = 300
UM = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}


def picture(height=SIDE, width=SIDE + 40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def ome_tiff(path, image=None, **options):
    """A pyramid of two levels, tiled, as microscopes and bioformats2raw write it."""
    image = picture() if image is None else image
    options = {"photometric": "rgb", "tile": (64, 64), **options}
    with tifffile.TiffWriter(path, ome=True) as file:
        file.write(image, subifds=1, metadata={"axes": "YXS", **UM}, **options)
        file.write(image[::2, ::2].copy(), subfiletype=1, **options)
    return image


def ome_zarr(path, image, version="0.4"):
    group = zarr.open_group(str(path), mode="w", zarr_format=2 if version == "0.4" else 3)
    planes = image.transpose(2, 0, 1)
    for name, level in (("0", planes), ("1", planes[:, ::2, ::2])):
        group.create_array(name, data=np.ascontiguousarray(level), chunks=(1, 64, 64))
    axes = [{"name": "c", "type": "channel"}, *({"name": n, "type": "space", "unit": "micrometer"} for n in "yx")]
    levels = [
        {"path": name, "coordinateTransformations": [{"type": "scale", "scale": [1.0, size, size]}]}
        for name, size in (("0", 0.5), ("1", 1.0))
    ]
    scales = [{"version": version, "axes": axes, "datasets": levels}]
    group.attrs.update({"multiscales": scales} if version == "0.4" else {"ome": {"multiscales": scales}})


def written(kind, folder):
    """(reader, image) of a file of a kind."""
    image = picture()
    path = folder / f"slide.{kind}"
    if kind == "ome.tif":
        ome_tiff(path, image)
    elif kind == "lzw.ome.tif":
        ome_tiff(path, image, compression="lzw", predictor=True)
    elif kind == "tif":  # in strips: OpenSlide leaves these to others
        tifffile.imwrite(path, image, photometric="rgb", rowsperstrip=16)
    elif kind == "tiled.tif":
        tifffile.imwrite(path, image, photometric="rgb", tile=(64, 64), resolution=(20000, 20000), resolutionunit=3)
    elif kind == "png":
        write_png(path, image)
    else:
        ome_zarr(path, image, "0.5" if kind == "v3.zarr" else "0.4")
    return open_slide(path), image


KINDS = ("ome.tif", "lzw.ome.tif", "tif", "tiled.tif", "png", "zarr", "v3.zarr")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("box", [Box(0, 0, SIDE, SIDE + 40), Box(63, 64, 129, 128), Box(290, 330, 300, 340)])
def test_any_box_is_the_images(tmp_path, kind, box):
    reader, image = written(kind, tmp_path)
    read = reader.read(0, box)
    np.testing.assert_array_equal(read, image[box.top : box.bottom, box.left : box.right])
    assert read.dtype == np.uint8 and reader.level_shapes[0] == image.shape[:2] and reader.origin == (0, 0)
    if len(reader.level_shapes) > 1:
        half = Box(box.top // 2, box.left // 2, box.bottom // 2, box.right // 2)
        part = image[::2, ::2][half.top : half.bottom, half.left : half.right]
        np.testing.assert_array_equal(reader.read(1, half), part)
    reader.close()


@pytest.mark.parametrize(("kind", "mpp"), [("ome.tif", 0.5), ("tiled.tif", 0.5), ("zarr", 0.5), ("png", None)])
def test_the_scale_is_the_files(tmp_path, kind, mpp):
    assert written(kind, tmp_path)[0].mpp == (None if mpp is None else (mpp, mpp))


def test_a_scale_that_cannot_be_is_none(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", picture(), photometric="rgb", resolution=(72, 72), resolutionunit=2)
    assert open_slide(tmp_path / "a.tif").mpp is None  # 352.8 um/px
    assert plausible_mpp(0.25, 0.2) == (0.25, 0.2) and plausible_mpp(None, 0.2) is None and plausible_mpp(0, 1) is None


def test_jpeg_in_ome_tiff(tmp_path):
    image = np.full((200, 200, 3), (200, 120, 180), np.uint8)
    ome_tiff(tmp_path / "a.ome.tif", image, compression="jpeg")
    read = open_slide(tmp_path / "a.ome.tif").read(0, Box(10, 10, 150, 150)).astype(int)
    assert abs(read - image[10:150, 10:150].astype(int)).max() <= 3


@pytest.mark.parametrize("kind", ["ome.tif", "tif"])
def test_a_torn_tiff_says_which_part(tmp_path, kind):
    written(kind, tmp_path)[0].close()
    path = tmp_path / f"slide.{kind}"
    reader = open_slide(path)
    offset = sorted(reader._pages[0].dataoffsets)[3]
    with path.open("r+b") as stream:
        stream.truncate(offset + 5)
    with pytest.raises(UnreadableRegionError, match=f"{path.name}: rows 0 to 300, columns 0 to 340 of level 0"):
        reader.read(0, Box(0, 0, SIDE, SIDE + 40))
    first = reader.read(0, Box(0, 0, 16, 16))
    np.testing.assert_array_equal(first, picture()[:16, :16])


def test_an_ome_tiff_that_was_cut_short_does_not_ask_for_its_scale_alone(tmp_path):
    path = tmp_path / "a.ome.tif"
    ome_tiff(path)  # its OME-XML stands at the end
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 20)
    with pytest.raises(SlideError, match=r"a\.ome\.tif is named an OME-TIFF but holds no OME-XML: .* copy it again"):
        slide_scale(open_slide(path))
    tifffile.imwrite(path, picture(), photometric="rgb", ome=True)  # whole, and silent about its scale
    with pytest.raises(SlideError, match=r"a\.ome\.tif does not say how large its pixels are"):
        slide_scale(open_slide(path))


@pytest.mark.parametrize("xml", ["<OME><Image></OME>", '<OME><Pixels PhysicalSizeX="?" PhysicalSizeY="?"/></OME>'])
def test_broken_ome_xml_costs_the_scale_alone(tmp_path, xml):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, picture(), photometric="rgb", description=xml, metadata=None)
    reader = open_slide(path)
    assert reader.mpp is None
    np.testing.assert_array_equal(reader.read(0, Box(0, 0, 16, 16)), picture()[:16, :16])


def test_the_tiff_library_says_nothing_beside_our_own_sentence(tmp_path):
    path = tmp_path / "a.ome.tif"
    ome_tiff(path)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size - 20)
    # in a process of its own: where nothing listens to a library's log, Python prints it
    code = f"from dataloader.slides import open_slide; open_slide({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == ""


def test_a_hole_in_the_middle_of_an_openslide_leaves_the_rest(tmp_path):
    """OpenSlide answers nothing any more after one fault: the reader opens it anew."""
    image = picture()
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, image, photometric="rgb", tile=(64, 64), compression="jpeg")
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        begin, count = page.dataoffsets[8], page.databytecounts[8]  # row 1, column 2 of 6
    with path.open("r+b") as stream:
        stream.seek(begin)
        stream.write(b"\0" * count)
    reader = open_slide(path)
    assert isinstance(reader, OpenSlideReader)
    before = reader.read(0, Box(200, 200, 260, 260))
    with pytest.raises(UnreadableRegionError, match="rows 70 to 80, columns 130 to 140 of level 0 cannot be read"):
        reader.read(0, Box(70, 130, 80, 140))
    np.testing.assert_array_equal(reader.read(0, Box(200, 200, 260, 260)), before)


def test_a_slide_that_vanished_is_said_to_have(tmp_path):
    reader, _ = written("zarr", tmp_path)
    shutil.rmtree(tmp_path / "slide.zarr")
    # A missing chunk is background to Zarr; what is gone altogether must not be.
    image = reader.read(0, Box(0, 0, 10, 10)) if (tmp_path / "slide.zarr").exists() else None
    assert image is None
    tiff, _ = written("ome.tif", tmp_path)
    tiff._file.filehandle.close()
    (tmp_path / "slide.ome.tif").unlink()
    with pytest.raises(SlideError, match=r"slide\.ome\.tif vanished while it was read"):
        tiff.read(0, Box(0, 0, 10, 10))


@pytest.mark.parametrize("name", ["a.svs", "a.tif", "a.png", "a.zarr", "a.ndpi"])
def test_what_is_missing_or_damaged_is_one_sentence(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(SlideError, match=name):
        open_slide(path)
    if path.suffix == ".zarr":
        path.mkdir()
        (path / "zarr.json").write_text("{}")
    else:
        path.write_bytes(b"II*\0no slide at all" * 10)
    with pytest.raises(SlideError, match=name) as caught:
        open_slide(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("image", [np.zeros((80, 80), np.uint8), np.zeros((80, 80, 3), np.uint16)])
def test_other_images_are_refused(tmp_path, image):
    tifffile.imwrite(tmp_path / "a.ome.tif", image)
    with pytest.raises(SlideError, match="not 8-bit RGB"):
        open_slide(tmp_path / "a.ome.tif")


def test_slides_from_afar(tmp_path):
    """Through fsspec: here its own scheme for files."""
    image = ome_tiff(tmp_path / "a.ome.tif")
    reader = open_slide(f"file://{tmp_path}/a.ome.tif")
    assert isinstance(reader, TiffReader)
    np.testing.assert_array_equal(reader.read(0, Box(5, 6, 70, 80)), image[5:70, 6:80])
    ome_zarr(tmp_path / "a.zarr", image)
    np.testing.assert_array_equal(open_slide(f"file://{tmp_path}/a.zarr").read(0, Box(5, 6, 7, 8)), image[5:7, 6:8])
    with pytest.raises(SlideError, match="only TIFF and OME-Zarr are read from afar"):
        open_slide("s3://bucket/a.svs")


real = pytest.mark.skipif(not DATA.is_dir(), reason="no real slides: set HOVERNET_CYCLIC_DATA")


@real
def test_real_slides_open():
    svs = open_slide(DATA / "CMU-1-Small-Region.svs")
    assert svs.level_shapes == ((2967, 2220),) and svs.mpp == (0.499, 0.499) and svs.magnification == 20
    bare = open_slide(DATA / "TCGA-CR-7395-01A-01-TS1_small.svs")
    assert bare.mpp is None and bare.magnification is None and len(bare.level_shapes) == 2
    ndpi = open_slide(DATA / "test3-TRITC-2-560.ndpi")
    assert len(ndpi.level_shapes) == 7 and ndpi.mpp == pytest.approx((0.2282, 0.2282), abs=1e-4)
    assert ndpi.read(6, Box(0, 0, 76, 62)).shape == (76, 62, 3)


@real
def test_a_level_that_is_no_whole_number_of_times_coarser_reads_alike_in_any_box():
    reader = open_slide(DATA / "TCGA-CR-7395-01A-01-TS1_small.svs")
    whole = reader.read(1, Box(900, 950, 1200, 1300))
    part = reader.read(1, Box(1001, 1003, 1100, 1201))
    np.testing.assert_array_equal(part, whole[101:200, 53:251])


def test_a_mirax_like_slide_is_cropped_to_what_was_scanned(tmp_path, monkeypatch):
    """QuPath crops to the bounds that a file states; coordinates must begin there too."""
    image = picture()
    tifffile.imwrite(tmp_path / "a.tif", image, photometric="rgb", tile=(64, 64))
    from dataloader.readers import openslide as module

    class Bounded(module.OpenSlide):
        @property
        def properties(self):
            bounds = {"x": "40", "y": "60", "width": "200", "height": "100"}
            return {f"openslide.bounds-{name}": value for name, value in bounds.items()}

    monkeypatch.setattr(module, "OpenSlide", Bounded)
    reader = OpenSlideReader(str(tmp_path / "a.tif"))
    assert reader.origin == (40, 60) and reader.level_shapes == ((100, 200),)
    np.testing.assert_array_equal(reader.read(0, Box(1, 2, 30, 40)), image[61:90, 42:80])
    assert json.dumps(reader.origin) == "[40, 60]"

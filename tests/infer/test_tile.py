import numpy as np
import pytest
from scipy.io import loadmat

from dataloader.images import write_png
from hovernet_cyclic.core.errors import DatasetError, RecipeError
from hovernet_cyclic.core.types import RawMaps
from infer.finish import Finisher
from infer.tile import Workers, list_tiles, segment_folder
from infer.type_info import default_type_info
from infer.writers import OutputFolder

SQUARES = ((4, 5), (20, 22), (22, 4))  # top, left of nuclei of 9 x 9 px


class DrawnSegmenter:
    """A Segmenter for tests: pixels of more than 200 in red are nuclei, with ideal distances in each."""

    def raw_maps(self, image):
        hv_map = np.zeros((*image.shape[:2], 2), np.float32)
        for top, left in SQUARES:
            ramp = np.linspace(-1, 1, 9, dtype=np.float32)
            hv_map[top : top + 9, left : left + 9, 0] = ramp
            hv_map[top : top + 9, left : left + 9, 1] = ramp[:, None]
        if image[0, 0, 2] == 77:
            raise MemoryError
        return RawMaps((image[..., 0] > 200).astype(np.float32), hv_map)

    def begin(self, pixels):
        raw = self.raw_maps(pixels.image)
        return lambda: raw


def picture(count=3):
    image = np.full((36, 40, 3), 50, np.uint8)
    image[::2, ::3] = 90
    for top, left in SQUARES[:count]:
        image[top : top + 9, left : left + 9, 0] = 250
    return image


@pytest.fixture
def folder(tmp_path):
    for count in range(4):
        write_png(tmp_path / "in" / f"im{count}.png", picture(count))
    return tmp_path / "in"


def finisher(path):
    return Finisher(OutputFolder(path, default_type_info(None)), "local", mpp=0.25)


def names(path):
    return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())


@pytest.mark.parametrize("workers", [Workers(0, 0), Workers(2, 2)])
def test_every_tile_gets_its_files(folder, tmp_path, workers):
    out = tmp_path / "out"
    summary = segment_folder([DrawnSegmenter()], list_tiles(folder).images, finisher(out), workers, quiet=True)
    assert (summary.done, summary.nuclei, summary.failures) == (4, 0 + 1 + 2 + 3, ())
    kinds = (("geojson", "geojson"), ("json", "json"), ("mat", "mat"), ("overlay", "png"))
    assert names(out) == [f"{kind}/im{count}.{suffix}" for kind, suffix in kinds for count in range(4)]
    for count in range(4):
        inst_map = loadmat(out / "mat" / f"im{count}.mat")["inst_map"]
        np.testing.assert_array_equal(inst_map > 0, picture(count)[..., 0] > 200)
        assert inst_map.max() == count


def test_a_bad_tile_is_named_and_leaves_nothing_of_an_earlier_run(folder, tmp_path, capsys):
    out = tmp_path / "out"
    segment_folder([DrawnSegmenter()], list_tiles(folder).images, finisher(out), quiet=True)
    (folder / "im1.png").write_bytes((folder / "im1.png").read_bytes()[:-30])
    greedy = picture(2)
    greedy[0, 0, 2] = 77
    write_png(folder / "im2.png", greedy)
    summary = segment_folder([DrawnSegmenter()], list_tiles(folder).images, finisher(out), Workers(1, 0), quiet=True)
    assert (summary.done, summary.nuclei) == (2, 0 + 3)
    torn, memory = summary.failures
    assert str(folder / "im1.png") in torn and "damaged" in torn
    assert memory.startswith(str(folder / "im2.png")) and "--batch_size" in memory
    assert {file.split("/")[1].split(".")[0] for file in names(out)} == {"im0", "im3"}
    printed = capsys.readouterr().err
    assert torn in printed and memory in printed


def test_a_disk_that_refuses_fails_the_tile_and_leaves_no_part_of_it(folder, tmp_path):
    out = tmp_path / "out"
    (out / "overlay" / "im2.png").mkdir(parents=True)  # no file can take this place
    summary = segment_folder([DrawnSegmenter()], list_tiles(folder).images, finisher(out), quiet=True)
    assert summary.done == 3 and len(summary.failures) == 1
    assert summary.failures[0].startswith(f"{folder / 'im2.png'}: its results cannot be written (Is a directory)")
    assert {file.split("/")[1].split(".")[0] for file in names(out)} == {"im0", "im1", "im3"}
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the folder should be")
    summary = segment_folder([DrawnSegmenter()], list_tiles(folder).images[:2], finisher(blocked), quiet=True)
    assert summary.done == 0 and len(summary.failures) == 2


def test_the_bar_counts_tiles_and_nuclei(folder, tmp_path, capsys):
    segment_folder([DrawnSegmenter()], list_tiles(folder).images, finisher(tmp_path / "out"))
    printed = capsys.readouterr().err
    assert "4/4" in printed and "tile" in printed and "6 nuclei" in printed


def test_folders_and_single_files(folder):
    (folder / "notes.txt").write_text("x")
    (folder / ".hidden").write_text("x")
    (folder / "sub").mkdir()
    tiles = list_tiles(folder)
    assert [path.name for path in tiles.images] == ["im0.png", "im1.png", "im2.png", "im3.png"]
    assert [path.name for path in tiles.left_out] == ["notes.txt"]
    assert list_tiles(folder / "im2.png").images == [folder / "im2.png"]
    with pytest.raises(DatasetError, match=r"notes\.txt is no image"):
        list_tiles(folder / "notes.txt")
    with pytest.raises(DatasetError, match="does not exist"):
        list_tiles(folder / "nowhere")


def test_two_files_of_one_name_are_refused(folder):
    (folder / "im1.JPG").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"im1\.JPG and .*im1\.png would get results of the same name"):
        list_tiles(folder)


def test_an_unknown_variant_is_refused_for_each_tile(folder, tmp_path):
    bad = Finisher(OutputFolder(tmp_path / "out", default_type_info(None)), "magic")
    summary = segment_folder([DrawnSegmenter()], list_tiles(folder).images[:1], bad, quiet=True)
    assert summary.done == 0 and isinstance(summary.failures[0], str) and "magic" in summary.failures[0]
    assert RecipeError.__name__ not in summary.failures[0]


def test_a_later_run_leaves_no_file_of_an_earlier_one_beside_its_own(folder, tmp_path):
    images = list_tiles(folder).images[1:2]
    outputs = OutputFolder(tmp_path / "out", default_type_info(None), save_qupath=True)
    segment_folder([DrawnSegmenter()], images, Finisher(outputs, "local"), quiet=True)
    assert "qupath/im1.tsv" in names(tmp_path / "out")
    (tmp_path / "out" / "json" / "other.json").write_text("{}")
    segment_folder([DrawnSegmenter()], images, finisher(tmp_path / "out"), quiet=True)
    assert "qupath/im1.tsv" not in names(tmp_path / "out")
    assert {"json/im1.json", "json/other.json"} <= set(names(tmp_path / "out"))

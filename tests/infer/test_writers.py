import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import loadmat

from dataloader.images import read_rgb
from hovernet_cyclic.core.label_maps import extract_nuclei
from hovernet_cyclic.core.types import RawMaps, SegmentedTile
from infer.type_info import TypeInfo, default_type_info, read_type_info
from infer.writers import OutputFolder, json_file, mat_file, tsv_file, write_together
from models.hovernet.post_proc import segment

GOLDEN = Path(os.environ.get("HOVERNET_CYCLIC_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the reference's numbers are not here")
MAT_NAMES = {"inst_map", "inst_uid", "inst_type", "inst_centroid", "raw_map"}


def squares(*corners, shape=(40, 50), types=()):
    """A tile with nuclei of 8 x 8 px at (top, left), numbered 3, 6, 9, ..., and its raw maps."""
    inst_map, type_map = np.zeros(shape, np.int32), np.zeros(shape, np.uint8)
    for index, (top, left) in enumerate(corners):
        inside = (slice(top, top + 8), slice(left, left + 8))
        inst_map[inside] = 3 * (index + 1)
        type_map[inside] = types[index] if types else 0
    typed = type_map if types else None
    raw = RawMaps((inst_map > 0).astype(np.float32), np.zeros((*shape, 2), np.float32), typed)
    return SegmentedTile("a", inst_map, extract_nuclei(inst_map, typed)), raw


def pixels(shape=(40, 50)):
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def saved(content, tmp_path):
    (tmp_path / "x.mat").write_bytes(content)
    return {name: value for name, value in loadmat(tmp_path / "x.mat").items() if not name.startswith("__")}


@pytest.fixture(scope="module")
def reference():
    return json.loads((GOLDEN / "output_schema.json").read_text())["tile"]


@pytest.fixture
def written(reference, tmp_path):
    """written(typed) -> the folder of all that is written for the image that the reference was run on."""
    image = read_rgb(GOLDEN / "tile_input.png")
    coded = image.astype(np.int64)
    prob = (coded[..., 0] // 8 / 31).astype(np.float32)
    hv_map = (coded[..., 1:] - 128).astype(np.float32) / np.float32(120)

    def write(typed):
        raw = RawMaps(prob, hv_map, (coded[..., 0] % 8).astype(np.uint8) if typed else None)
        types = TypeInfo()
        if typed:
            (tmp_path / "type_info.json").write_text(json.dumps(reference["type_names_used"]))
            types = read_type_info(tmp_path / "type_info.json", 5)
        inst_map = segment(raw, "hovernet")
        tile = SegmentedTile("tile", inst_map, extract_nuclei(inst_map, raw.type_map))
        OutputFolder(tmp_path / "out", types, save_qupath=True, save_raw_map=True).write(tile, image, raw)
        return tmp_path / "out"

    return write


@needs_golden
@pytest.mark.parametrize("case", ["none", "types"])
def test_files_are_those_of_the_reference(reference, written, case):
    expected, out = reference[case], written(typed=case == "types")
    assert (out / "json" / "tile.json").read_text() == json.dumps(expected["json"])
    assert (out / "qupath" / "tile.tsv").read_text() == expected["qupath_tsv"]
    found = {name: value for name, value in loadmat(out / "mat" / "tile.mat").items() if name in MAT_NAMES}
    assert list(found) == list(expected["mat"])
    for name, wanted in expected["mat"].items():
        assert [list(found[name].shape), str(found[name].dtype)] == [wanted["shape"], wanted["dtype"]], name
        if "value" in wanted:
            np.testing.assert_array_equal(found[name], wanted["value"])
    runs = np.array(reference["inst_map_rle_rowmajor"])
    np.testing.assert_array_equal(found["inst_map"].ravel(), np.repeat(runs[:, 0], runs[:, 1]))


@needs_golden
@pytest.mark.parametrize("typed", [False, True])
def test_files_of_an_image_without_nuclei_are_those_of_the_reference(reference, typed, tmp_path):
    wanted = reference["empty_image"]
    tile, _ = squares()
    assert json.loads(json_file(tile.nuclei)) == wanted["json"]
    shapes = {name.split(" ")[0]: shape for name, shape in wanted["mat_shapes"].items() if typed or "(" not in name}
    found = saved(mat_file(tile, typed=typed), tmp_path)
    assert found.pop("inst_map").dtype == np.int32
    assert {name: list(value.shape) for name, value in found.items()} == shapes
    assert {str(value.dtype) for value in found.values()} == {wanted["mat_dtype_of_the_empty_arrays"]}
    assert tsv_file(tile.nuclei, TypeInfo()) == b"x\ty\tclass\tname\tcolor\n"


def test_json_keeps_ids_and_says_boxes_row_first_and_points_x_first():
    tile, _ = squares((2, 30), (20, 5), types=(1, 2))
    content = json.loads(json_file(tile.nuclei, mag=40))
    assert content["mag"] == 40 and list(content["nuc"]) == ["3", "6"]
    first = content["nuc"]["3"]
    assert first["bbox"] == [[2, 30], [10, 38]] and first["centroid"] == [33.5, 5.5]
    assert sorted(first["contour"]) == [[30, 2], [30, 9], [37, 2], [37, 9]]
    assert (first["type"], content["nuc"]["6"]["type"]) == (1, 2) and first["type_prob"] == pytest.approx(1)


@pytest.mark.parametrize("types", [(), (1, 2)])
def test_raw_map_is_kept_on_request(tmp_path, types):
    tile, raw = squares((2, 30), (20, 5), types=types)
    assert "raw_map" not in saved(mat_file(tile, typed=bool(types)), tmp_path)
    raw_map = saved(mat_file(tile, raw, bool(types)), tmp_path)["raw_map"]
    assert raw_map.dtype == np.float32 and raw_map.shape == (40, 50, 4 if types else 3)
    np.testing.assert_array_equal(raw_map[..., -3], raw.np_prob)
    np.testing.assert_array_equal(raw_map[..., -2:], raw.hv_map)
    if types:
        np.testing.assert_array_equal(raw_map[..., 0], raw.type_map)


def test_a_nucleus_without_a_contour_is_in_the_map_alone(tmp_path):
    tile, raw = squares((2, 30))
    tile.inst_map[30, 10:12] = 7
    tile = SegmentedTile("a", tile.inst_map, extract_nuclei(tile.inst_map))
    OutputFolder(tmp_path, TypeInfo()).write(tile, pixels(), raw)
    found = loadmat(tmp_path / "mat" / "a.mat")
    assert found["inst_uid"].tolist() == [[3]] and 7 in found["inst_map"]


def test_each_option_adds_what_it_says(tmp_path):
    tile, raw = squares((2, 30))
    OutputFolder(tmp_path / "plain", TypeInfo()).write(tile, pixels(), raw)
    OutputFolder(tmp_path / "all", TypeInfo(), True, True, True).write(tile, pixels(), raw)
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == ["geojson", "json", "mat", "overlay"]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["geojson", "json", "mat", "overlay", "qupath"]
    sizes = {name: (tmp_path / name / "mat" / "a.mat").stat().st_size for name in ("plain", "all")}
    assert sizes["all"] > sizes["plain"] + raw.np_prob.nbytes
    overlays = {name: read_rgb(tmp_path / name / "overlay" / "a.png") for name in ("plain", "all")}
    assert (overlays["all"] != overlays["plain"]).any()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), unique=True, max_size=6), st.booleans())
def test_all_files_tell_the_same_nuclei(tmp_path_factory, places, typed):
    folder = tmp_path_factory.mktemp("out")
    corners = [(10 * row, 10 * column) for row, column in places]
    tile, raw = squares(*corners, types=[1 + i % 3 for i in range(len(corners))] if typed and corners else ())
    types = default_type_info(4) if raw.type_map is not None else TypeInfo()
    OutputFolder(folder, types, save_qupath=True).write(tile, pixels(), raw)
    nuclei = json.loads((folder / "json" / "a.json").read_text())["nuc"]
    found = loadmat(folder / "mat" / "a.mat")
    table = [line.split("\t") for line in (folder / "qupath" / "a.tsv").read_text().splitlines()[1:]]
    features = json.loads((folder / "geojson" / "a.geojson").read_text())["features"]
    assert [int(name) for name in nuclei] == found["inst_uid"].ravel().tolist()
    centroids = [nucleus["centroid"] for nucleus in nuclei.values()]
    assert centroids == found["inst_centroid"].tolist()
    assert centroids == [[float(x), float(y)] for x, y, *_ in table]
    assert len(features) == len(nuclei)
    filled = np.zeros(tile.inst_map.shape, np.int32)
    for name, nucleus in nuclei.items():
        cv2.fillPoly(filled, [np.array(nucleus["contour"])], int(name))
    np.testing.assert_array_equal(filled, tile.inst_map)


def test_names_that_file_systems_allow(tmp_path):
    tile, raw = squares((2, 30))
    for name in ("a b", "näme", "a.b.c", "-x"):
        OutputFolder(tmp_path, TypeInfo()).write(SegmentedTile(name, tile.inst_map, tile.nuclei), pixels(), raw)
        assert (tmp_path / "json" / f"{name}.json").is_file()


def test_files_are_written_all_or_none(tmp_path):
    blocked = tmp_path / "b" / "y"
    blocked.mkdir(parents=True)
    with pytest.raises(OSError):
        write_together({tmp_path / "a" / "x": b"1", blocked: b"2", tmp_path / "c" / "z": b"3"})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    blocked.rmdir()
    write_together({tmp_path / "a" / "x": b"1", blocked: b"2"})
    write_together({tmp_path / "a" / "x": b"3"})
    assert (tmp_path / "a" / "x").read_bytes() == b"3" and blocked.read_bytes() == b"2"
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["x", "y"]


def test_a_full_disk_leaves_the_results_of_before(tmp_path, monkeypatch):
    tile, raw = squares((2, 30))
    outputs = OutputFolder(tmp_path, TypeInfo())
    outputs.write(tile, pixels(), raw)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write_bytes = Path.write_bytes

    def full(path, data):
        if path.parent.name == "overlay":
            write_bytes(path, data[:10])
            raise OSError(28, "No space left on device")
        return write_bytes(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        outputs.write(squares((5, 5))[0], pixels(), raw)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_discard_removes_one_tile_and_what_a_killed_process_left_of_it(tmp_path):
    tile, raw = squares((2, 30))
    outputs = OutputFolder(tmp_path, TypeInfo(), save_qupath=True)
    outputs.discard("a")  # nothing there yet
    for name in ("a", "a.b", "[a]"):
        outputs.write(SegmentedTile(name, tile.inst_map, tile.nuclei), pixels(), raw)
    (tmp_path / "mat" / ".a.mat.4711.tmp").write_bytes(b"half")
    (tmp_path / "mat" / ".a.b.mat.4711.tmp").write_bytes(b"half")
    outputs.discard("a")
    left = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert {"a.b.json", "[a].json", ".a.b.mat.4711.tmp"} < left
    assert not [name for name in left if name.lstrip(".").rpartition(".")[0] in ("a", "a.mat.4711")]


def test_probabilities_of_types_stand_beside_hover_nets_entries(tmp_path):
    tile, raw = squares((2, 30), (20, 5), types=(1, 2))
    probs = np.zeros((*tile.inst_map.shape, 3), np.float16)
    probs[..., 2] = 1
    nuclei = extract_nuclei(tile.inst_map, raw.type_map, probs)
    plain, told = (json.loads(json_file(found))["nuc"] for found in (tile.nuclei, nuclei))
    for inst_id, nucleus in told.items():
        assert list(nucleus) == [*plain[inst_id], "type_probs"] and nucleus.pop("type_probs") == [0.0, 0.0, 1.0]
    assert told == plain, "what hover_net writes stays as it is"
    found = saved(mat_file(SegmentedTile("a", tile.inst_map, nuclei), typed=True), tmp_path)
    np.testing.assert_array_equal(found["inst_type_probs"], [[0, 0, 1]] * 2)
    assert found["inst_type_probs"].dtype == np.float32
    assert "inst_type_probs" not in saved(mat_file(tile, typed=True), tmp_path)

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.io import savemat

from dataloader.label_files import list_label_files, read_label_map
from hovernet_cyclic.core.errors import DatasetError

DATA = Path(os.environ.get("HOVERNET_CYCLIC_DATA", Path(__file__).parents[3] / "shared" / "data"))
INST_MAP = np.array([[0, 2, 2, 0], [0, 2, 2, 300], [7, 7, 0, 300]], np.int32)
TYPE_MAP = np.array([[0, 1, 1, 0], [0, 1, 1, 3], [2, 2, 0, 3]], np.uint8)


def written(folder, name, values, types=None):
    """Write a map in the format that the name asks for."""
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".mat":
        savemat(path, {"inst_map": values, **(types or {})})
    else:
        assert cv2.imwrite(str(path), values)
    return path


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("a.png", np.uint16),
        ("a.tif", np.uint16),
        ("a.tiff", np.int32),
        ("a.npy", np.int64),
        ("a.npy", np.float64),
        ("a.mat", np.float64),
        ("ä b.c.png", np.uint16),
    ],
)
def test_every_format_gives_the_map(tmp_path, name, dtype):
    annotation = read_label_map(written(tmp_path, name, INST_MAP.astype(dtype)))
    np.testing.assert_array_equal(annotation.inst_map, INST_MAP)
    assert annotation.inst_map.dtype == np.int32
    assert annotation.type_map is None
    assert annotation.tile_id == Path(name).stem


@settings(max_examples=20, deadline=None)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 254)))
def test_eight_bit_png_keeps_every_value(tmp_path_factory, inst_map):
    path = written(tmp_path_factory.getbasetemp(), "eight.png", inst_map)
    np.testing.assert_array_equal(read_label_map(path).inst_map, inst_map)


@pytest.mark.parametrize(
    "types",
    [
        {"type_map": TYPE_MAP.astype(np.float64)},
        {"inst_type": [[1], [2], [3]]},
        {"inst_type": [[3], [1], [2]], "inst_uid": [[300], [2], [7]]},
        {"inst_type": [[300, 3], [2, 1], [7, 2]]},
    ],
    ids=["type_map", "ascending", "by_uid", "id_and_type"],
)
def test_types_of_a_mat_file(tmp_path, types):
    annotation = read_label_map(written(tmp_path, "a.mat", INST_MAP, types))
    np.testing.assert_array_equal(annotation.type_map, TYPE_MAP)
    assert annotation.type_map.dtype == np.uint8


def test_a_nucleus_that_the_mat_file_does_not_name_has_type_0(tmp_path):
    path = written(tmp_path, "a.mat", INST_MAP, {"inst_type": [[1], [2]], "inst_uid": [[2], [7]]})
    np.testing.assert_array_equal(read_label_map(path).type_map, np.where(INST_MAP == 300, 0, TYPE_MAP))


def test_hover_net_file_without_nuclei(tmp_path):
    """It writes empty arrays of its own shapes."""
    types = {"inst_type": np.zeros((0, 1)), "inst_uid": np.zeros((0, 1)), "inst_centroid": np.zeros((0, 0))}
    annotation = read_label_map(written(tmp_path, "a.mat", np.zeros((4, 5), np.int32), types))
    assert annotation.inst_map.shape == annotation.type_map.shape == (4, 5)
    assert not annotation.inst_map.any() and not annotation.type_map.any()


def test_npy_of_two_channels_and_a_type_map_of_its_own(tmp_path):
    both = written(tmp_path, "a.npy", np.stack([INST_MAP, TYPE_MAP], axis=-1))
    np.testing.assert_array_equal(read_label_map(both).type_map, TYPE_MAP)
    alone = written(tmp_path, "b.png", INST_MAP.astype(np.uint16))
    for type_path in (
        written(tmp_path, "t.png", TYPE_MAP),
        written(tmp_path, "t.mat", INST_MAP, {"type_map": TYPE_MAP}),
    ):
        annotation = read_label_map(alone, type_path)
        np.testing.assert_array_equal(annotation.type_map, TYPE_MAP)
        np.testing.assert_array_equal(annotation.inst_map, INST_MAP)


def broken(folder):
    """(file, words of its sentence) for all that can be wrong with a file."""
    torn = written(folder, "torn.png", np.arange(4000, dtype=np.uint16).reshape(50, 80))
    torn.write_bytes(torn.read_bytes()[:-40])
    files = {name: folder / name for name in ("text.png", "text.npy", "text.mat", "empty.png", "absent.png")}
    for name in ("text.png", "text.npy", "text.mat"):
        files[name].write_text("no label map")
    files["empty.png"].write_bytes(b"")
    np.savez(folder / "several.npz", a=INST_MAP)
    (folder / "several.npz").rename(folder / "several.npy")
    savemat(folder / "other.mat", {"masks": INST_MAP})
    return [
        (torn, "damaged"),
        (files["text.png"], "damaged or of a kind"),
        (files["text.npy"], "no NPY array"),
        (files["text.mat"], "no MAT file"),
        (files["empty.png"], "empty file"),
        (files["absent.png"], "cannot be read"),
        (folder / "several.npy", "several arrays"),
        (folder / "other.mat", "it holds masks"),
        (written(folder, "colour.png", np.zeros((4, 4, 3), np.uint8)), "3 channels"),
        (written(folder, "mask.png", np.array([[0, 255]], np.uint8)), "black-and-white"),
        (written(folder, "mask.npy", np.array([[False, True]])), "black-and-white"),
        (written(folder, "half.npy", np.array([[0.5, 1.0]])), "whole numbers"),
        (written(folder, "nan.npy", np.array([[np.nan, 1.0]])), "whole numbers"),
        (written(folder, "inf.npy", np.array([[np.inf, 1.0]])), "outside"),
        (written(folder, "negative.npy", np.array([[-1, 1]])), "outside"),
        (written(folder, "huge.npy", np.array([[1, 2**31]])), "outside"),
        (written(folder, "words.npy", np.array([["a"]])), "whole numbers"),
        (written(folder, "line.npy", np.arange(5)), r"shape \(5,\)"),
        (written(folder, "count.mat", INST_MAP, {"inst_type": [[1], [2]]}), "2 types for 3 nuclei"),
        (written(folder, "unlike.mat", INST_MAP, {"type_map": TYPE_MAP[:2]}), "unlike shape"),
    ]


def test_bad_files_are_refused_in_one_sentence_with_their_name(tmp_path):
    for path, words in broken(tmp_path):
        with pytest.raises(DatasetError, match=words) as caught:
            read_label_map(path)
        assert str(path) in str(caught.value)
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_unlike_or_missing_type_maps_are_refused(tmp_path):
    inst_path = written(tmp_path, "a.npy", INST_MAP)
    with pytest.raises(DatasetError, match=r"3 x 4 px but its type map .* has 2 x 4"):
        read_label_map(inst_path, written(tmp_path, "t.npy", TYPE_MAP[:2]))
    with pytest.raises(DatasetError, match="no 'type_map'"):
        read_label_map(inst_path, written(tmp_path, "t.mat", INST_MAP))


def test_folders_are_listed_by_stem(tmp_path):
    for name in ("b.npy", "a.npy", ".hidden.npy"):
        written(tmp_path, name, INST_MAP)
    (tmp_path / "notes.txt").write_text("no map")
    assert list(list_label_files(tmp_path)) == ["a", "b"]
    (tmp_path / "mat").mkdir()
    written(tmp_path / "mat", "c.mat", INST_MAP)
    assert list_label_files(tmp_path) == {"c": tmp_path / "mat" / "c.mat"}


def test_bad_folders_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="does not exist"):
        list_label_files(tmp_path / "absent")
    with pytest.raises(DatasetError, match="no label map"):
        list_label_files(tmp_path)
    written(tmp_path, "a.npy", INST_MAP), written(tmp_path, "a.mat", INST_MAP)
    with pytest.raises(DatasetError, match="one name"):
        list_label_files(tmp_path)


@pytest.mark.skipif(not (DATA / "consep").is_dir(), reason=f"no real tissue at {DATA}: set HOVERNET_CYCLIC_DATA")
def test_real_label_maps():
    labels, types = (list_label_files(DATA / "consep" / name) for name in ("labels", "class_maps"))
    stem = next(iter(labels))
    annotation = read_label_map(labels[stem], types[stem])
    assert annotation.inst_map.shape == annotation.type_map.shape == (1000, 1000)
    np.testing.assert_array_equal(annotation.inst_map > 0, annotation.type_map > 0)

import json

import pytest

from hovernet_cyclic.core.errors import DatasetError
from infer.type_info import UNTYPED_COLOUR, default_type_info, read_type_info


def written(tmp_path, content):
    path = tmp_path / "type_info.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_hover_nets_file(tmp_path):
    content = {"0": ["nolabel", [0, 0, 0]], "1": ["neopla", [255, 0, 0]], "2": ["inflam", [0, 255, 7]]}
    types = read_type_info(written(tmp_path, content), 3)
    assert [types.name(i) for i in range(3)] == ["nolabel", "neopla", "inflam"]
    assert types.colour(2) == (0, 255, 7)


def test_more_types_than_the_network_tells_are_kept(tmp_path):
    """hover_net's own file names six, and is given to networks of five as well."""
    types = read_type_info(written(tmp_path, {str(i): [f"type {i}", [i, 0, 0]] for i in range(6)}), 5)
    assert [types.name(i) for i in range(5)] == [f"type {i}" for i in range(5)]


def test_background_may_be_left_out(tmp_path):
    types = read_type_info(written(tmp_path, {"1": ["a", [1, 2, 3]]}), 2)
    assert types.name(0) == "nolabel" and types.colour(0) == (0, 0, 0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON file"),
        (b"\xff\xfe".decode("latin-1"), "is no JSON file"),
        ("[" * 100_000, "is no JSON file"),
        ([1], "holds no entry a type"),
        ({"one": ["a", [1, 2, 3]]}, 'its entry "one"'),
        ({"\u0661": ["a", [1, 2, 3]]}, "its entry"),
        ({"1": ["a", [1, 2]]}, 'its entry "1"'),
        ({"1": ["a", [1, 2, 256]]}, 'its entry "1"'),
        ({"1": ["a", [1, 2, -1]]}, 'its entry "1"'),
        ({"1": ["a", [1, 2, 0.5]]}, 'its entry "1"'),
        ({"1": ["a", [1, 2, True]]}, 'its entry "1"'),
        ({"1": [5, [1, 2, 3]]}, 'its entry "1"'),
        ({"1": "a"}, 'its entry "1"'),
        ({"1": ["a\tb", [1, 2, 3]]}, 'its entry "1"'),
        ({}, "does not name type 1"),
        ({"2": ["b", [1, 2, 3]]}, "does not name type 1"),
    ],
)
def test_other_files_are_refused_in_one_sentence(tmp_path, content, words):
    path = written(tmp_path, content)
    with pytest.raises(DatasetError) as caught:
        read_type_info(path, 2)
    assert words in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "type_info.json"
    path.write_text('{"1": ["a", [1, 2, 3]]}', encoding="utf-8-sig")
    assert read_type_info(path, 2).name(1) == "a"


def test_a_missing_file(tmp_path):
    with pytest.raises(DatasetError, match=r"nowhere\.json cannot be read \(No such file"):
        read_type_info(tmp_path / "nowhere.json", 2)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "net.tar"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DatasetError, match="is no JSON file"):
        read_type_info(path, 2)


def test_without_a_file_names_are_the_recipes_and_colours_differ():
    types = default_type_info(6, ("background", "epithelial", "lymphocyte"))
    assert [types.name(i) for i in range(6)] == ["background", "epithelial", "lymphocyte", "type 3", "type 4", "type 5"]
    assert len({types.colour(i) for i in range(6)}) == 6
    assert default_type_info(40).name(39) == "type 39"


def test_untyped_nuclei_have_a_colour():
    assert default_type_info(None).colour(None) == default_type_info(3).colour(None) == UNTYPED_COLOUR

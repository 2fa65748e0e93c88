"""The comparison of post-processings: what it counts, and where its table goes."""

import numpy as np
import pytest

from benchmarks import post_proc_compare as compare
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.types import Annotation, ImageTile, RawMaps
from models.hovernet.targets import hover_targets

SIDE = 256


def discs():
    """int32 (SIDE, SIDE): a lattice of discs, none of them in the first corner."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    inst_map = np.zeros((SIDE, SIDE), np.int32)
    for number, (y, x) in enumerate([(y, x) for y in range(60, SIDE, 40) for x in range(60, SIDE, 40)], 1):
        inst_map[(rows - y) ** 2 + (columns - x) ** 2 < 100] = number
    return inst_map


class Perfect:
    """A segmenter and a source whose maps are the targets themselves."""

    tile_ids = ("one", "two")

    def raw_maps(self, image):
        targets = hover_targets(discs(), (SIDE, SIDE))
        return RawMaps(targets.np_map.astype(np.float32), targets.hv_map)

    def read_tile(self, index):
        return ImageTile(self.tile_ids[index], np.zeros((SIDE, SIDE, 3), np.uint8), 0.25)

    def annotation(self, index):
        return Annotation(self.tile_ids[index], discs())


def test_perfect_maps_score_one_and_an_artefact_moves_the_reference_alone():
    for row in compare.compare(Perfect(), Perfect()):
        assert row.true_nuclei == row.found["local"].nuclei == row.found["hovernet"].nuclei == 25
        assert row.found["local"].aji == row.found["hovernet"].aji == pytest.approx(1)
        assert row.found["local"].kept == 1 > row.found["hovernet"].kept
        assert row.found["local"].spoilt_aji > 0.85 > row.found["hovernet"].spoilt_aji


def test_kept_are_those_of_the_very_same_pixels():
    before = discs()
    assert compare.share_kept(before, before * 7) == 1
    grown, gone, merged = before.copy(), before.copy(), before.copy()
    grown[140:141, 150:158] = before[140, 140]
    gone[before == before[140, 140]] = 0
    merged[before == before[180, 180]] = before[140, 140]
    far = 21  # all but the four nearest the corner
    assert compare.share_kept(before, grown) == compare.share_kept(before, gone) == 1 - 1 / far
    assert compare.share_kept(before, merged) == 1 - 2 / far
    assert np.isnan(compare.share_kept(np.zeros((9, 9), np.int32), np.zeros((9, 9), np.int32)))


def test_the_table_replaces_what_stands_between_the_marks(tmp_path):
    found = {name: compare.Found(3, 0.5, 0.25, 1.0) for name in ("local", "hovernet")}
    table = compare.render([compare.Row("one", 4, found), compare.Row("two", 2, found)])
    assert table.splitlines()[-1] == "| mean | 3 | 3 | 3 | 0.500 | 0.500 | 0.250 | 0.250 | 100.0% | 100.0% |"
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{compare.BEGIN}\nold\n{compare.END}\nafter\n")
    for _ in range(2):
        compare.write_between_marks(document, table)
    assert document.read_text() == f"before\n{compare.BEGIN}\n{table}\n{compare.END}\nafter\n"
    assert list(tmp_path.iterdir()) == [document]
    document.write_text("no marks")
    with pytest.raises(DatasetError, match=r"doc\.md"):
        compare.write_between_marks(document, table)

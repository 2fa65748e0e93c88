"""Which drawn tiles a recipe learns from, and what of them."""

import dataclasses

import numpy as np
import pytest

from dataloader.datasets import open_source
from hovernet_cyclic.core.errors import DatasetError, RecipeError
from hovernet_cyclic.core.settings import DataSettings, NetSettings, TrainRecipe
from hovernet_cyclic.core.types import Annotation, DataSplits, ImageTile
from hovernet_cyclic.training.drawn_tiles import annotated_source, drawn_tiles

NAMES = ("b", "c", "a")


class Drawn:
    """An AnnotatedSource of three tiles, out of order; the nucleus of 'b' is of type 2, and 'c' tells no types."""

    tile_ids = NAMES

    def __init__(self):
        self.asked = []

    def read_tile(self, index):
        return ImageTile(NAMES[index], np.full((20, 30, 3), index, np.uint8), 0.25)

    def annotation(self, index):
        self.asked.append(NAMES[index])
        inst_map = np.zeros((20, 30), np.int32)
        inst_map[4:9, 4:9] = 7
        types = {"a": np.minimum(inst_map, 1), "b": np.minimum(inst_map, 2), "c": None}[NAMES[index]]
        return Annotation(NAMES[index], inst_map, None if types is None else types.astype(np.uint8))


def recipe(annotated_tiles=None, nr_types=None):
    data = DataSettings("folder", annotated_tiles=annotated_tiles)
    return TrainRecipe("mine", data, "masks", net=NetSettings(nr_types=nr_types))


@pytest.mark.parametrize(
    ("wanted", "names"), [(None, "abc"), (1, "a"), (2, "ab"), (3, "abc"), (("c",), "c"), (("c", "a"), "ac")]
)
def test_tiles_are_chosen_by_number_or_name_and_no_other_label_is_opened(wanted, names):
    source = Drawn()
    tiles = drawn_tiles(recipe(wanted), source)
    assert list(tiles) == sorted(source.asked) == list(names)
    for name, tile in tiles.items():
        assert tile.image[0, 0, 0] == NAMES.index(name), "the image and the masks are of one tile"
        assert tile.trusted.all() and tile.trusted.shape == (20, 30) and tile.inst_map.max() == 7


def test_types_are_kept_where_the_network_tells_them_and_the_data_has_them():
    assert all(tile.type_map is None for tile in drawn_tiles(recipe(), Drawn()).values())
    tiles = drawn_tiles(recipe(nr_types=3), Drawn())
    assert tiles["c"].type_map is None and tiles["b"].type_map.max() == 2 and tiles["a"].type_map.max() == 1


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        (recipe(4), RecipeError, "annotated_tiles is 4, but the data has 3 tiles"),
        (recipe(("a", "d")), RecipeError, "names 'd', which is no training tile"),
        (recipe(nr_types=2), DatasetError, "b has nuclei of type 2, but net.nr_types is 2"),
        (recipe(("c",), nr_types=3), DatasetError, "None of the 1 drawn tiles tells types"),
    ],
)
def test_what_cannot_be_learnt_from_is_named(made, error, words):
    with pytest.raises(error) as caught:
        drawn_tiles(made, Drawn())
    assert words in str(caught.value) and str(caught.value).endswith(".")


def test_data_without_label_maps_is_named():
    splits = DataSplits(train=None, train_annotated=Drawn())
    assert annotated_source(recipe(), splits) is splits.train_annotated
    with pytest.raises(DatasetError, match=r"my_data has no label maps of its training tiles.*'masks'"):
        annotated_source(recipe(), dataclasses.replace(splits, train_annotated=None), "my_data")


def test_the_papers_sets_can_be_learnt_from_by_their_masks_and_types(paper_once):
    names = ("background", "grade 1", "grade 2", "grade 3", "endothelial")
    data = DataSettings("ccrcc", type_names=names)
    recipe = TrainRecipe("t", data, supervision="masks", net=NetSettings(nr_types=len(names)))
    source = annotated_source(recipe, open_source(data, str(paper_once), with_patches=False))
    tiles = drawn_tiles(recipe, source)
    assert list(tiles) == ["tile_00", "tile_01"] and all(tile.trusted.all() for tile in tiles.values())
    for tile in tiles.values():
        np.testing.assert_array_equal(tile.type_map, np.where(tile.inst_map, tile.inst_map % 4 + 1, 0))

"""Tiles with drawn masks, as the back end learns from them. Only runs whose `supervision` says masks come here."""

from __future__ import annotations

import numpy as np
from joblib import Parallel, cpu_count, delayed

from dataloader.augs import LabelledTile
from hovernet_cyclic.core.errors import DatasetError, RecipeError
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import AnnotatedSource, DataSplits


def annotated_source(recipe: TrainRecipe, splits: DataSplits, data_dir: str = "The data") -> AnnotatedSource:
    """The training tiles with drawn masks. Raises DatasetError, naming `data_dir`, where there are none."""
    if splits.train_annotated is None:
        raise DatasetError(
            f"{data_dir} has no label maps of its training tiles, which supervision '{recipe.supervision}' learns "
            "from: add the labels folder, or set supervision to 'image_level'."
        )
    return splits.train_annotated


def drawn_tiles(recipe: TrainRecipe, source: AnnotatedSource) -> dict[str, LabelledTile]:
    """tile_id -> tile, of those that the recipe's data.annotated_tiles names, by name; every pixel is trusted.

    type_map is None where the recipe's network tells no types, or the data none for this tile. Raises DatasetError for
    an image or label map that cannot be used, and for types that the recipe does not know; RecipeError for tiles that
    are not there.
    """
    chosen = _chosen(recipe, source)
    jobs = (delayed(_drawn_tile)(recipe, source, index) for index in chosen.values())
    read: list[LabelledTile] = Parallel(cpu_count(), prefer="threads")(jobs)  # decoding frees the interpreter
    tiles = dict(zip(chosen, read, strict=True))
    if recipe.net.nr_types is not None and all(tile.type_map is None for tile in tiles.values()):
        raise DatasetError(
            f"None of the {len(tiles)} drawn tiles tells types, and net.nr_types is {recipe.net.nr_types}: add type "
            "maps and data.type_names, or leave net.nr_types out."
        )
    return tiles


def _chosen(recipe: TrainRecipe, source: AnnotatedSource) -> dict[str, int]:
    """tile_id -> its index in `source`, sorted by name."""
    there = dict(sorted((tile_id, index) for index, tile_id in enumerate(source.tile_ids)))
    wanted = recipe.data.annotated_tiles
    if isinstance(wanted, int):
        if wanted > len(there):
            raise RecipeError(f"data.annotated_tiles is {wanted}, but the data has {len(there)} tiles: give fewer.")
        return dict(list(there.items())[:wanted])
    missing = [tile_id for tile_id in wanted or () if tile_id not in there]
    if missing:
        raise RecipeError(f"data.annotated_tiles names '{missing[0]}', which is no training tile: correct the name.")
    return there if wanted is None else {tile_id: there[tile_id] for tile_id in sorted(wanted)}


def _drawn_tile(recipe: TrainRecipe, source: AnnotatedSource, index: int) -> LabelledTile:
    image, drawn = source.read_tile(index).image, source.annotation(index)
    types, known = drawn.type_map, recipe.net.nr_types
    if known is not None and types is not None and int(types.max(initial=0)) >= known:
        raise DatasetError(
            f"{drawn.tile_id} has nuclei of type {int(types.max())}, but net.nr_types is {known}, background included: "
            "raise it, and name all types in data.type_names."
        )
    return LabelledTile(image, drawn.inst_map, np.ones(drawn.inst_map.shape, bool), None if known is None else types)

"""The cycle with a handful of drawn tiles beside the image-level labels."""

from __future__ import annotations

from pathlib import Path

from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import AnnotatedSource, TileSource
from hovernet_cyclic.training.cyclic import run_cycles
from hovernet_cyclic.training.drawn_tiles import drawn_tiles
from hovernet_cyclic.training.run_dir import RunDir
from models.devices import Device
from models.ranks import ALONE, Ranks


def run_mixed_cycles(
    recipe: TrainRecipe,
    source: TileSource,
    annotated: AnnotatedSource,
    run: RunDir,
    device: Device,
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> Path:
    """As `run_cycles`, but the tiles of the recipe's data.annotated_tiles are learnt from by their drawn masks.

    They stand in place of these tiles' pseudo masks in the back end, in a fixed share of each batch. Raises
    DatasetError or RecipeError where they cannot be used.
    """
    return run_cycles(recipe, source, run, device, quiet, drawn_tiles(recipe, annotated), ranks)

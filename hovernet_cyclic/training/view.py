"""A sheet of what a run is given, with what it is taught written below: `run_train.py --view=train|valid`."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dataloader.augs import LabelledTile, augment_colour, augment_geometry, augment_patch, sample_rng
from dataloader.classifier_loader import label_name
from dataloader.images import write_png
from dataloader.pseudo_store import load_pseudo_mask, mask_path
from hovernet_cyclic.core.errors import DatasetError
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import AnnotatedSource, DataSplits, Float32Array, TileSource, UInt8Array
from hovernet_cyclic.training.drawn_tiles import annotated_source, drawn_tiles
from hovernet_cyclic.training.gallery import captioned, middle, outline, shade, sheet
from hovernet_cyclic.training.run_dir import RunDir
from models.hovernet.targets import hover_targets

PATCHES_SHOWN = 8
TILES_SHOWN = 4
POSITIVE, NEGATIVE = (40, 200, 60), (220, 60, 40)


def write_view(splits: DataSplits, split: str, recipe: TrainRecipe) -> Path:
    """Write LOG_DIR/view_<split>.png. split: 'train' or 'valid'. Raises DatasetError where there is no such split."""
    path = Path(recipe.log_dir + f"_view_{split}.png")
    if split == "train":
        rows = [] if recipe.supervision == "masks" else train_rows(splits.train, recipe)
        rows += [] if recipe.supervision == "image_level" else drawn_rows(annotated_source(recipe, splits), recipe)
    elif splits.valid is not None:
        rows = valid_rows(splits.valid)
    else:
        raise DatasetError("This data has no valid split: add valid/images and valid/labels, or use --view=train.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, sheet(rows))
    return path


def train_rows(source: TileSource, recipe: TrainRecipe) -> list[list[UInt8Array]]:
    """Augmented patches, framed by their label, then tiles with pseudo masks and hv maps once a run has made some."""
    order = np.random.default_rng(recipe.seed).permutation(len(source.patch_labels))
    rows = []
    for label, colour in ((1.0, POSITIVE), (0.0, NEGATIVE)):
        chosen = [i for i in order if source.patch_labels[i, 0] == label][:PATCHES_SHOWN]
        name = label_name(source, label)
        images = (augment_patch(source.read_patch(i).image, sample_rng(recipe.seed, 0, int(i))) for i in chosen)
        rows.append([captioned(_framed(image, colour), name) for image in images])
    folders = sorted(RunDir(recipe.log_dir).path.glob("cycle_*/pseudo_masks"))
    shown = range(min(TILES_SHOWN, len(source.tile_ids)))
    return rows + [_tile_row(source, i, folders[-1] if folders else None, recipe.seed) for i in shown]


def _tile_row(source: TileSource, index: int, folder: Path | None, seed: int) -> list[UInt8Array]:
    tile = source.read_tile(index)
    image, window = middle(tile.image)
    rng = sample_rng(seed, 1, index)
    if folder is None or not mask_path(folder, tile.tile_id).exists():
        seen = captioned(augment_colour(image, rng), "augmented; no pseudo mask yet")
        return [captioned(image, tile.tile_id), seen]
    mask = load_pseudo_mask(folder, tile.tile_id)
    return _taught(LabelledTile(image, mask.inst_map[window], mask.trusted[window]), rng, (tile.tile_id, "pseudo mask"))


def drawn_rows(source: AnnotatedSource, recipe: TrainRecipe) -> list[list[UInt8Array]]:
    """Tiles with drawn masks as the back end is given them, for recipes that learn from these."""
    rows = []
    for index, (tile_id, tile) in enumerate(list(drawn_tiles(recipe, source).items())[:TILES_SHOWN]):
        image, window = middle(tile.image)
        cut = LabelledTile(image, tile.inst_map[window], tile.trusted[window])
        rows.append(_taught(cut, sample_rng(recipe.seed, 2, index), (tile_id, "drawn mask")))
    return rows


def _taught(tile: LabelledTile, rng: np.random.Generator, names: tuple[str, str]) -> list[UInt8Array]:
    """The tile as the student sees it, its outlines with what is not trusted in shade, and its hv maps.

    names: of the tile, and of what it is taught.
    """
    turned = augment_geometry(tile, rng)
    height, width = tile.inst_map.shape
    targets = hover_targets(turned.inst_map, (height, width), trusted=turned.trusted, keep_border=True)
    taught = shade(outline(turned.image, turned.inst_map), ~turned.trusted)
    hv_maps = (_signed(targets.hv_map[..., i]) for i in range(2))
    named = (f"{names[0]}, augmented", f"{names[1]}; grey: left out", "hv: horizontal", "hv: vertical")
    pictures = (augment_colour(turned.image, rng), taught, *hv_maps)
    return [captioned(picture, name) for picture, name in zip(pictures, named, strict=True)]


def valid_rows(source: AnnotatedSource) -> list[list[UInt8Array]]:
    """Annotated tiles, plain and outlined."""
    rows = []
    for i in range(min(TILES_SHOWN, len(source.tile_ids))):
        tile = source.read_tile(i)
        image, window = middle(tile.image)
        drawn = outline(image, source.annotation(i).inst_map[window])
        rows.append([captioned(image, tile.tile_id), captioned(drawn, "drawn mask")])
    return rows


def _framed(image: UInt8Array, colour: tuple[int, int, int]) -> UInt8Array:
    return np.asarray(cv2.copyMakeBorder(image, 3, 3, 3, 3, cv2.BORDER_CONSTANT, value=colour), dtype=np.uint8)


def _signed(values: Float32Array) -> UInt8Array:
    """float32 (H, W) in [-1, 1] -> uint8 (H, W, 3): blue -1, grey 0, red 1."""
    grey = np.full((*values.shape, 3), 128.0)
    grey[..., 0] += 127 * values
    grey[..., 2] -= 127 * values
    return grey.astype(np.uint8)

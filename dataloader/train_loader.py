"""Batches for the back end: crops of tiles with HoVer-Net's targets, and canvases of negative patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np

from dataloader.augs import LabelledTile, augment_colour, augment_geometry, sample_rng
from dataloader.classifier_loader import fit_to_shape
from dataloader.copy_paste import Cutout, paste
from hovernet_cyclic.core.settings import BackEndSettings
from hovernet_cyclic.core.types import HoVerTargets, TileSource, UInt8Array
from models.hovernet.targets import hover_targets

BatchT = TypeVar("BatchT")


class TileBatch(NamedTuple):
    """What one step of the back end learns from.

    images: uint8 (B, H, W, 3) RGB, as the student sees them. plain_images: the same without the change of colour, as
    the teacher sees them. targets: B targets on the network's output.
    """

    images: UInt8Array
    plain_images: UInt8Array
    targets: list[HoVerTargets]


class TileSampler:
    """Draws crops of tiles at random, crops of tiles with drawn masks, and canvases made of negative patches.

    Every pixel of such a canvas is background beyond doubt, but for nuclei pasted on: the image-level labels say so.
    """

    def __init__(
        self,
        tiles: Sequence[LabelledTile],
        negative_patches: tuple[TileSource | None, Sequence[int]],
        shapes: tuple[tuple[int, int], tuple[int, int]],
        settings: BackEndSettings,
        seed: int,
        annotated: Sequence[LabelledTile] = (),
        cutouts: Sequence[Sequence[Cutout]] = (),
    ) -> None:
        """shapes: (height, width) of the network's input and of its output.

        annotated: tiles of which settings.annotated_per_batch crops are in each batch, or all that are not canvases
        where `tiles` is empty. cutouts: of each of `tiles`, the nuclei that may be pasted on crops of it, or () for no
        pasting. Raises ValueError where there is no tile at all.
        """
        if not tiles and not annotated:
            raise ValueError("there is no tile to draw from")
        self._tiles, self._annotated = tiles, annotated
        self._source, self._negative_indices = negative_patches
        self._input_shape, self._output_shape = shapes
        self._negatives = settings.negatives_per_batch if len(self._negative_indices) else 0
        self._crops = settings.batch_size - self._negatives
        wanted = settings.annotated_per_batch if tiles else self._crops
        self._of_annotated = min(wanted, self._crops) if annotated else 0
        self._cutouts = cutouts
        self._paste_share, self._most_pasted, self._pale_share = (
            settings.paste_share,
            settings.most_pasted,
            settings.pale_share,
        )
        self._seed = seed

    def batch(self, step: int, rows: Sequence[int] | None = None) -> TileBatch:
        """The batch of `step`, or those of its rows: the same for the same seed and step, whatever was drawn before."""
        drawn = [self._row(step, row) for row in (range(self._crops + self._negatives) if rows is None else rows)]
        shown, plain, targets = zip(*drawn, strict=True)
        return TileBatch(np.stack(shown), np.stack(plain), list(targets))

    def _row(self, step: int, row: int) -> tuple[UInt8Array, UInt8Array, HoVerTargets]:
        """First the crops of `tiles`, then those with drawn masks, then the canvases."""
        rng = sample_rng(self._seed, step, row)
        if row >= self._crops:
            return self._example(self._canvas(rng), rng)
        if row >= self._crops - self._of_annotated:
            return self._example(self._crop(self._annotated, rng), rng)
        return self._example(self._crop(self._tiles, rng, self._cutouts), rng)

    def _example(self, tile: LabelledTile, rng: np.random.Generator) -> tuple[UInt8Array, UInt8Array, HoVerTargets]:
        turned = augment_geometry(tile, rng)
        shown = augment_colour(turned.image, rng, "strong")
        targets = hover_targets(turned.inst_map, self._output_shape, turned.type_map, turned.trusted, keep_border=True)
        return shown, turned.image, targets

    def _crop(
        self, tiles: Sequence[LabelledTile], rng: np.random.Generator, cutouts: Sequence[Sequence[Cutout]] = ()
    ) -> LabelledTile:
        index = int(rng.integers(len(tiles)))
        window = self._window(_at_least(tiles[index], self._input_shape), rng)
        return self._pasted(window, cutouts[index], rng) if len(cutouts) else window

    def _pasted(self, tile: LabelledTile, cutouts: Sequence[Cutout], rng: np.random.Generator) -> LabelledTile:
        """The tile, in `paste_share` of all cases with nuclei pasted on."""
        if rng.random() >= self._paste_share:
            return tile
        return paste(tile, cutouts, int(rng.integers(1, self._most_pasted + 1)), rng, self._pale_share)

    def _window(self, tile: LabelledTile, rng: np.random.Generator) -> LabelledTile:
        top, left = (
            int(rng.integers(have - want + 1))
            for want, have in zip(self._input_shape, tile.inst_map.shape, strict=True)
        )
        window = slice(top, top + self._input_shape[0]), slice(left, left + self._input_shape[1])
        type_map = None if tile.type_map is None else tile.type_map[window]
        return LabelledTile(tile.image[window], tile.inst_map[window], tile.trusted[window], type_map)

    def _canvas(self, rng: np.random.Generator) -> LabelledTile:
        """Negative patches side by side until the network's input is full."""
        height, width = self._input_shape
        canvas = np.zeros((height, width, 3), np.uint8)
        top = 0
        while top < height:
            top = self._fill_row(canvas, top, rng)
        nothing = np.zeros((height, width), np.int32)
        bare = LabelledTile(canvas, nothing, np.ones((height, width), bool), nothing.astype(np.uint8))
        if not len(self._cutouts):
            return bare
        return self._pasted(bare, self._cutouts[int(rng.integers(len(self._cutouts)))], rng)

    def _fill_row(self, canvas: UInt8Array, top: int, rng: np.random.Generator) -> int:
        """One row of patches, as high as its first one. Returns where the next row begins."""
        source, (height, width) = self._source, canvas.shape[:2]
        assert source is not None, "patches without a source"
        left, bottom = 0, height
        while left < width:
            index = self._negative_indices[int(rng.integers(len(self._negative_indices)))]
            patch = source.read_patch(index).image
            bottom = min(height, top + patch.shape[0]) if left == 0 else bottom
            right = min(width, left + patch.shape[1])
            canvas[top:bottom, left:right] = fit_to_shape(patch, (bottom - top, right - left), rng)
            left = right
        return bottom


def _at_least(tile: LabelledTile, shape: tuple[int, int]) -> LabelledTile:
    """The tile, mirrored where it is smaller than `shape`; mirrored pixels are not trusted."""
    missing = [max(0, want - have) for want, have in zip(shape, tile.inst_map.shape, strict=True)]
    if not any(missing):
        return tile
    rows, columns = (0, missing[0]), (0, missing[1])
    return LabelledTile(
        np.pad(tile.image, (rows, columns, (0, 0)), mode="symmetric"),
        np.pad(tile.inst_map, (rows, columns)),
        np.pad(tile.trusted, (rows, columns)),
        None if tile.type_map is None else np.pad(tile.type_map, (rows, columns)),
    )


def prefetch(make: Callable[[int], BatchT], steps: range) -> Iterator[BatchT]:
    """make(step) for each step, the next one made in a thread while the caller works on this one."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = pool.submit(make, steps[0]) if len(steps) else None
        for step in steps:
            assert waiting is not None
            ready = waiting.result()
            waiting = pool.submit(make, step + 1) if step + 1 in steps else None
            yield ready

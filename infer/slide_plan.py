"""What is to be done of one slide: where, at which scale, cut how."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dataloader.readers.faults import is_remote
from dataloader.slides import SlideScale, SlideView, open_slide, slide_scale, view_at, whole
from dataloader.tissue import TissueMask, TissueSettings, find_tissue, given_mask, read_coarsely
from hovernet_cyclic.core.errors import SlideError
from hovernet_cyclic.core.geometry import Shape, intersect, overlap, slide_tiles
from hovernet_cyclic.core.types import BoolArray, Box, Int64Array, RawMaps, SlideReader, SlideTile
from infer.journal import TILE, Key

BLOCK = 64  # px: the network is asked block by block, at the same places whatever the windows
MARGIN = 128  # px round a tile's own box that are post-processed with it
# um from tissue within which the network is asked, so that no nucleus on tissue lies on the edge of what is.
SURROUND_UM = 64.0


@dataclass(frozen=True)
class SlideRequest:
    """What is asked of every slide.

    mpp: um/px of the network. slide_mpp: of the slides' finest level where the user says it. region: (x, y, width,
    height) in px of level 0, or None. mask_dir: folder of given tissue masks. find_tissue: False takes the whole slide.
    window: px a side, about: it is made of whole patches.
    """

    mpp: float
    slide_mpp: float | None = None
    region: tuple[int, int, int, int] | None = None
    mask_dir: Path | None = None
    find_tissue: bool = True
    window: int = 2048
    tissue: TissueSettings = field(default_factory=TissueSettings)


class PlannedTile(NamedTuple):
    """key: of its record. tile: its boxes. wanted: whether nuclei may be in it."""

    key: Key
    tile: SlideTile
    wanted: bool


@dataclass(frozen=True)
class ActiveArea:
    """blocks: bool (ceil(H / BLOCK), ceil(W / BLOCK)): where the network is asked. Elsewhere there is no nucleus."""

    blocks: BoolArray

    def _part(self, box: Box) -> tuple[slice, slice]:
        rows = slice(box.top // BLOCK, -(-box.bottom // BLOCK))
        return rows, slice(box.left // BLOCK, -(-box.right // BLOCK))

    def touches(self, box: Box) -> bool:
        """Whether any block that a box touches is active."""
        return bool(self.blocks[self._part(box)].any())

    def only(self, raw: RawMaps, box: Box) -> RawMaps:
        """The maps of a box whose top and left are multiples of BLOCK, with no nucleus outside of the active area."""
        active = self.blocks[self._part(box)]
        if active.all():
            return raw
        pixels = active.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)[: box.height, : box.width]
        return RawMaps(np.where(pixels, raw.np_prob, np.float32(0)), raw.hv_map, raw.type_map, raw.type_probs)


@dataclass(frozen=True)
class SlidePlan:
    """One slide, ready to be segmented. Boxes in px of `view`.

    name: of its results. region: where nuclei count. tissue: None where all of the slide is taken. tiles: all of the
    grid, row by row. identity: plain values that decide the result.
    """

    name: str
    reader: SlideReader
    scale: SlideScale
    view: SlideView
    region: Box
    tissue: TissueMask | None
    active: ActiveArea
    tiles: tuple[PlannedTile, ...]
    identity: Mapping[str, Any]

    @property
    def wanted(self) -> list[PlannedTile]:
        """The tiles in which nuclei may be."""
        return [tile for tile in self.tiles if tile.wanted]

    @property
    def notices(self) -> list[str]:
        """What a person should know of how the slide is read, a sentence each."""
        said = []
        if self.scale.source == "magnification":
            said.append(
                f"{self.name}: the file says no um/px; taken as {self.scale.mpp[0]:g} from its magnification: give "
                "--mpp if that is wrong."
            )
        if min(self.view.factors) < 1:
            said.append(
                f"{self.name}: its finest level, {self.scale.mpp[0]:g} um/px, is coarser than the network's "
                f"{self.view.mpp[0]:g}: it is enlarged, which makes no detail."
            )
        if not self.wanted:
            where = "" if self.tissue is None or self.tissue.mask.any() else ", as no tissue was found or given"
            said.append(
                f"{self.name}: there is nothing to do{where}: see tissue/{self.name}.png, or use --whole_slide."
            )
        return said

    def windows_for(self, tiles: list[PlannedTile]) -> set[Key]:
        """Which windows the network must be asked for, so that these tiles can be post-processed."""
        rows_columns = {(tile.key.row, tile.key.column) for tile in tiles}
        near = {(row - down, column - across) for row, column in rows_columns for down in (0, 1) for across in (0, 1)}
        return {
            tile.key
            for tile in self.tiles
            if (tile.key.row, tile.key.column) in near and self.active.touches(tile.tile.window)
        }


def plan_slide(path: str, name: str, request: SlideRequest, cell: Callable[[Shape], Shape]) -> SlidePlan:
    """Open a slide and lay out the work. cell: of the network. Raises SlideError for a slide that cannot be used."""
    reader = open_slide(path)
    scale = slide_scale(reader, request.slide_mpp)
    view = view_at(reader, scale, request.mpp)
    region = _region(view, request.region, path)
    mask, mask_source = _mask(reader, scale, name, request)
    tissue = None if mask is None else TissueMask(mask, view.shape)
    active = ActiveArea(_active_blocks(view, tissue))
    window = window_shape(cell(view.shape), request.window)
    grid = slide_tiles(view.shape, window, MARGIN)
    across = -(-view.shape[1] // window[1])
    tiles = tuple(
        PlannedTile(
            Key(TILE, *divmod(i, across)),
            tile,
            overlap(tile.own, region) and (tissue is None or tissue.touches(tile.own)),
        )
        for i, tile in enumerate(grid)
    )
    identity = {
        "slide": _file_identity(path),
        "mpp": list(view.mpp),
        "mpp_from": scale.source,
        "region": list(region),
        "tissue": mask_source,
    }
    return SlidePlan(name, reader, scale, view, region, tissue, active, tiles, identity)


def window_shape(cell: Shape, about: int) -> Shape:
    """(h, w) px of a window: whole patches, about `about` px a side and twice the margin at least."""
    height, width = (side * max(1, round(about / side), math.ceil(2 * MARGIN / side)) for side in cell)
    return height, width


def _region(view: SlideView, region: tuple[int, int, int, int] | None, path: str) -> Box:
    """--region, px of level 0, as a box in px of the view."""
    if region is None:
        return whole(view)
    (across, down), (x, y, width, height) = view.scale_to_level0, region
    box = Box(
        math.floor(y / down), math.floor(x / across), math.ceil((y + height) / down), math.ceil((x + width) / across)
    )
    common = intersect(box, whole(view))
    if common is None:
        rows, columns = view.reader.level_shapes[0]
        raise SlideError(f"{path}: --region lies outside of the slide, which is {columns} x {rows} px: correct it.")
    return common


def _mask(reader: SlideReader, scale: SlideScale, name: str, request: SlideRequest) -> tuple[BoolArray | None, str]:
    """The tissue mask, and where it comes from."""
    if request.mask_dir is not None:
        given = given_mask(request.mask_dir, name, reader)
        if given is None:
            raise SlideError(
                f"{request.mask_dir} holds no {name}.png and no {name}.geojson: put the slide's mask there."
            )
        return given, f"given, {hashlib.sha256(np.packbits(given).tobytes()).hexdigest()[:16]} of {given.shape}"
    if not request.find_tissue:
        return None, "whole slide"
    return find_tissue(read_coarsely(reader, scale, request.tissue.mpp), request.tissue), "found"


def _active_blocks(view: SlideView, tissue: TissueMask | None) -> BoolArray:
    shape = (-(-view.shape[0] // BLOCK), -(-view.shape[1] // BLOCK))
    if tissue is None:
        return np.ones(shape, np.bool_)
    sums = np.pad(tissue.mask.astype(np.int64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    rows = _touched(shape[0], view.shape[0], view.mpp[0], tissue.mask.shape[0])
    columns = _touched(shape[1], view.shape[1], view.mpp[1], tissue.mask.shape[1])
    inside = [[sums[np.ix_(one, other)] for other in columns] for one in rows]
    return np.asarray(inside[1][1] - inside[0][1] - inside[1][0] + inside[0][0] > 0)


def _touched(count: int, length: int, mpp: float, mask_length: int) -> tuple[Int64Array, Int64Array]:
    """For each block along an axis, the mask's pixels (first, last + 1) within SURROUND_UM of it."""
    surround = SURROUND_UM / mpp
    scale = mask_length / length
    starts = np.arange(count) * BLOCK
    first = np.floor((starts - surround) * scale).clip(0, mask_length - 1)
    last = np.ceil((np.minimum(starts + BLOCK, length) + surround) * scale).clip(1, mask_length)
    return first.astype(np.int64), np.maximum(last, first + 1).astype(np.int64)


def _file_identity(path: str) -> dict[str, Any]:
    if is_remote(path):
        return {"path": path}
    status = Path(path).stat()
    return {"path": Path(path).name, "bytes": status.st_size, "modified": status.st_mtime_ns}

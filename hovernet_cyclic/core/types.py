"""Every value that crosses a module boundary, and the protocols between layers.

Conventions: arrays are (row, column); points are (x, y); boxes are half-open, in pixels at a stated mpp
(micrometres per pixel). Images are RGB uint8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

UInt8Array: TypeAlias = npt.NDArray[np.uint8]
Int32Array: TypeAlias = npt.NDArray[np.int32]
Int64Array: TypeAlias = npt.NDArray[np.int64]
Float16Array: TypeAlias = npt.NDArray[np.float16]
Float32Array: TypeAlias = npt.NDArray[np.float32]
Float64Array: TypeAlias = npt.NDArray[np.float64]
BoolArray: TypeAlias = npt.NDArray[np.bool_]


class Box(NamedTuple):
    """Half-open box in pixels at a stated mpp: rows [top, bottom), columns [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def height(self) -> int:
        """Rows, px."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns, px."""
        return self.right - self.left


@dataclass(frozen=True)
class ImageTile:
    """One image to learn on or to segment.

    image: uint8 (H, W, 3) RGB. mpp: micrometres per pixel. image_labels: float32 (C,), 0 or 1 per image-level class,
    or None where the tile carries none.
    """

    tile_id: str
    image: UInt8Array
    mpp: float
    image_labels: Float32Array | None = None


@dataclass(frozen=True)
class Annotation:
    """Drawn masks of one tile. inst_map: int32 (H, W), 0 background, 1..N; type_map: uint8 (H, W) or None.

    notes: what its reader had to decide, in words, such as who keeps the pixels that two nuclei share.
    """

    tile_id: str
    inst_map: Int32Array
    type_map: UInt8Array | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class ActivationMap:
    """Where the front end saw nuclei, for C image-level classes.

    evidence: float32 (C, H, W), never rescaled per tile. probability: float32 (C,).
    """

    tile_id: str
    evidence: Float32Array
    probability: Float32Array


@dataclass(frozen=True)
class PseudoMask:
    """Instances that a cycle believes in.

    inst_map: int32 (H, W), 0 background, 1..N. trusted: bool (H, W), False where the back end must not be told
    anything. confidence: float32 (N,), in [0, 1], of instance 1..N.
    """

    tile_id: str
    cycle: int
    inst_map: Int32Array
    trusted: BoolArray
    confidence: Float32Array


@dataclass(frozen=True)
class HoVerTargets:
    """What HoVer-Net's branches are trained towards, on the (h, w) of the network's output.

    np_map: int64 (h, w), 0 or 1. hv_map: float32 (h, w, 2), horizontal then vertical, in [-1, 1].
    type_map: int64 (h, w) or None. trusted: bool (h, w).
    """

    np_map: Int64Array
    hv_map: Float32Array
    type_map: Int64Array | None
    trusted: BoolArray


@dataclass(frozen=True)
class RawMaps:
    """The network's answer for one tile.

    np_prob: float32 (H, W), probability of nucleus in [0, 1]. hv_map: float32 (H, W, 2), horizontal then vertical.
    type_map: uint8 (H, W), most probable type, or None. type_probs: float16 (H, W, T), probability of each type in
    [0, 1], or None (half precision, for there are T of them).
    """

    np_prob: Float32Array
    hv_map: Float32Array
    type_map: UInt8Array | None = None
    type_probs: Float16Array | None = None


@dataclass(frozen=True)
class Nucleus:
    """One segmented nucleus, in pixels of its tile.

    bbox: half-open box. centroid: (x, y), pixel centres at integers. contour: int32 (K, 2), x then y, K >= 3, not
    closed. type_id: class, or None. type_prob: share of its pixels of that class, or None. type_probs: float32 (T,),
    mean over its pixels of the probability of each type, background first, or None.
    """

    bbox: Box
    centroid: tuple[float, float]
    contour: Int32Array
    type_id: int | None = None
    type_prob: float | None = None
    type_probs: Float32Array | None = None


@dataclass(frozen=True)
class SegmentedTile:
    """Nuclei of one tile. inst_map: int32 (H, W); nuclei: inst_id (its value in inst_map) -> Nucleus; mpp: um/px."""

    tile_id: str
    inst_map: Int32Array
    nuclei: dict[int, Nucleus]
    mpp: float | None = None


class SlideTile(NamedTuple):
    """A part of a slide, px at the working mpp.

    own: where its nuclei count. read: what is post-processed for that, own and a margin round it. window: what the
    network is asked for when the tile's turn comes.
    """

    read: Box
    own: Box
    window: Box


class SlideReader(Protocol):
    """One slide file. Level 0 is the finest; each level has its own pixels, (0, 0) at its top left.

    path: as given. level_shapes: (H, W) px of each level. mpp: um/px of level 0 (down, across), None where the file
    does not say. magnification: of the objective, None likewise. origin: (x, y) of our pixel (0, 0) in the pixels that
    the file itself counts (a slide may be cropped to what was scanned).
    """

    path: str
    level_shapes: tuple[tuple[int, int], ...]
    mpp: tuple[float, float] | None
    magnification: float | None
    origin: tuple[int, int]

    def read(self, level: int, box: Box) -> UInt8Array:
        """uint8 (H, W, 3) RGB of a box in px of the level, inside it.

        What was never scanned is of the slide's background colour. Raises UnreadableRegionError for a damaged region of
        a slide that otherwise goes on, and SlideError for a slide that is gone.
        """

    def close(self) -> None:
        """Let go of the file."""


@dataclass(frozen=True)
class LabelledPatch:
    """An image-level example. image: uint8 (h, w, 3) RGB; labels: float32 (C,), 0 or 1."""

    patch_id: str
    image: UInt8Array
    labels: Float32Array


class TileSource(Protocol):
    """What an image-level run may see: images and image-level labels. It cannot be asked for masks."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the C image-level classes."""

    @property
    def tile_ids(self) -> Sequence[str]:
        """Names of the unlabelled training tiles."""

    def read_tile(self, index: int) -> ImageTile:
        """The training tile at `index`, read from disk at each call."""

    @property
    def patch_labels(self) -> Float32Array:
        """float32 (P, C): the image-level labels of all patches."""

    @property
    def patch_shapes(self) -> Sequence[tuple[int, int]]:
        """(height, width) in pixels of each of the P patches."""

    @property
    def patch_groups(self) -> Sequence[str]:
        """The image (or file) that each of the P patches was cut from: held-out patches are chosen by group."""

    def read_patch(self, index: int) -> LabelledPatch:
        """The patch at `index`."""


class AnnotatedSource(Protocol):
    """Tiles with drawn masks. Only scoring, and recipes whose `supervision` says masks, are handed one."""

    @property
    def tile_ids(self) -> Sequence[str]:
        """Names of the tiles."""

    def read_tile(self, index: int) -> ImageTile:
        """The tile at `index`."""

    def annotation(self, index: int) -> Annotation:
        """The drawn masks of the tile at `index`: opens a label file."""


@dataclass(frozen=True)
class DataSplits:
    """What `open_source` finds: `train` always; annotated splits where label folders exist (none is opened for it)."""

    train: TileSource
    train_annotated: AnnotatedSource | None = None
    valid: AnnotatedSource | None = None
    test: dict[str, AnnotatedSource] = field(default_factory=dict)


class Pixels(NamedTuple):
    """A part of an image or slide as it was read, in px at the network's mpp.

    image: uint8 (box.height, box.width, 3) RGB. box: what it covers. whole: (H, W) of the image or slide. wanted: where
    an answer is wanted, inside `box`; top and left multiples of 64 (see infer/base.py).
    """

    image: UInt8Array
    box: Box
    whole: tuple[int, int]
    wanted: Box


def whole_image(image: UInt8Array) -> Pixels:
    """An image, uint8 (H, W, 3) RGB, all of which was read and is wanted."""
    height, width = image.shape[:2]
    box = Box(0, 0, height, width)
    return Pixels(image, box, (height, width), box)


class Segmenter(Protocol):
    """Anything that turns an image into raw maps: a network behind a lattice of patches, or a test double."""

    def raw_maps(self, image: UInt8Array) -> RawMaps:
        """uint8 (H, W, 3) RGB at the network's mpp -> RawMaps of the same (H, W)."""


class WindowSegmenter(Protocol):
    """A network on a device, as `infer.base.NetworkSegmenter` is one."""

    def begin(self, pixels: Pixels) -> Callable[[], RawMaps]:
        """Start on `pixels.wanted`; what is returned waits for the maps: it is called once."""


class SlideSegmenter(WindowSegmenter, Protocol):
    """The same for slides, cut into windows. margin: px that it sees round a window."""

    margin: int

    def cell(self, whole: tuple[int, int]) -> tuple[int, int]:
        """(h, w) px that one patch answers for in a slide of (H, W) px."""

    def raw_maps_of(self, pixels: Pixels) -> RawMaps:
        """RawMaps of `pixels.wanted`."""


@dataclass
class Checkpoint:
    """Everything a run needs to go on, and all that inference needs. Tensors and plain values only.

    recipe: TrainRecipe.to_dict(). cycle: of the last one that is done. stage: 'front_end', 'pseudo_masks', 'back_end',
    'judge' or 'done'. classifier, student, teacher: state dicts or None. optimisers: of the stage under way, name ->
    state dict. rng: name -> number. best: name -> state dict of the best cycle's networks, {} where they are the above.
    position: where in the cycle the run stands, {} for between two of them.
    """

    format_version: int
    recipe: dict[str, Any]
    cycle: int
    stage: str
    step: int
    classifier: dict[str, Any] | None = None
    student: dict[str, Any] | None = None
    teacher: dict[str, Any] | None = None
    optimisers: dict[str, Any] = field(default_factory=dict)
    rng: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    position: dict[str, Any] = field(default_factory=dict)

"""Augmentation of patches and tiles: geometry, colour through imgaug, stain in optical density.

Every function takes its generator, so a sample depends on (seed, epoch, index) alone: see `sample_rng`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np

from dataloader.stain import jitter_stain
from hovernet_cyclic.core.types import BoolArray, Int32Array, UInt8Array


class Strength(NamedTuple):
    """How far colours go. scale, shift: of haematoxylin and eosin, see `jitter_stain`; affine: its probability.

    hue in cv2's half degrees, saturation and contrast as shares, brightness in grey values; blur: standard deviation
    px; noise: the same in grey values. All are the largest change to either side.
    """

    scale: float
    shift: float
    affine: float
    hue: int = 0
    saturation: float = 0.0
    brightness: int = 0
    contrast: float = 0.0
    blur: float = 0.0
    noise: float = 0.0


class LabelledTile(NamedTuple):
    """image: uint8 (H, W, 3) RGB; inst_map: int32 (H, W); trusted: bool (H, W); type_map: uint8 (H, W) or None."""

    image: UInt8Array
    inst_map: Int32Array
    trusted: BoolArray
    type_map: UInt8Array | None = None


def strength_of(name: str) -> Strength:
    """'weak': a little stain. 'strong': hover_net's ranges of colour and noise, and more stain. Else ValueError."""
    known = {
        "weak": Strength(scale=0.08, shift=0.01, affine=0.0),
        "strong": Strength(0.25, 0.03, 0.5, 8, 0.2, 26, 0.25, 1.2, 0.04 * 255),
    }
    if name not in known:
        raise ValueError(f"strength is '{name}': use one of {', '.join(known)}")
    return known[name]


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one sample: the same whichever worker draws it, and in whatever order."""
    return np.random.default_rng([seed, epoch, index])


def augment_patch(image: UInt8Array, rng: np.random.Generator) -> UInt8Array:
    """A patch for the classifier: flipped, turned by quarters, stain jittered, at times blurred or brighter.

    image: uint8 (h, w, 3) RGB; returns the same shape and type. A patch that is not square is turned by halves only.
    """
    turned = apply_turn(image, random_turn(image.shape[0] == image.shape[1], rng))
    stained = jitter_stain(turned, rng, scale=0.2, shift=0.02)
    if rng.random() < 0.2:
        stained = np.asarray(cv2.GaussianBlur(stained, (0, 0), rng.uniform(0.3, 1.0)), np.uint8)
    if rng.random() < 0.3:
        bright = cv2.convertScaleAbs(stained, alpha=rng.uniform(0.9, 1.1), beta=rng.uniform(-10, 10))
        stained = np.asarray(bright, np.uint8)
    return np.ascontiguousarray(stained, np.uint8)


def augment_tile(
    image: UInt8Array, inst_map: Int32Array, trusted: BoolArray, rng: np.random.Generator, strength: str = "strong"
) -> LabelledTile:
    """A tile for the segmenter: geometry on all three, colour on the image, as strong as `strength_of(strength)`.

    image: uint8 (H, W, 3) RGB; inst_map: int32 (H, W); trusted: bool (H, W). The shapes stay. Pixels that come from
    outside of the tile are mirrored in the image, 0 in inst_map and not trusted.
    """
    tile = augment_geometry(LabelledTile(image, inst_map, trusted), rng, strength_of(strength).affine)
    return tile._replace(image=augment_colour(tile.image, rng, strength))


def augment_geometry(tile: LabelledTile, rng: np.random.Generator, affine: float = 0.5) -> LabelledTile:
    """Flips and quarter turns, and with probability `affine` also scale .8 to 1.2, shear and any rotation.

    Apart from `augment_colour`, so that a student and its teacher can see one geometry in two colours.
    """
    turn = random_turn(tile.image.shape[0] == tile.image.shape[1], rng)
    type_map = None if tile.type_map is None else apply_turn(tile.type_map, turn)
    turned = LabelledTile(
        apply_turn(tile.image, turn), apply_turn(tile.inst_map, turn), apply_turn(tile.trusted, turn), type_map
    )
    return _warp(turned, _random_affine(turned.inst_map.shape, rng)) if rng.random() < affine else turned


def augment_colour(image: UInt8Array, rng: np.random.Generator, strength: str = "strong") -> UInt8Array:
    """Stain jitter; where `strength` asks for it also imgaug's blur or noise, hue, saturation, brightness, contrast.

    image: uint8 (H, W, 3) RGB; returns the same shape and type.
    """
    how = strength_of(strength)
    stained = jitter_stain(image, rng, how.scale, how.shift)
    if not how.hue:
        return stained
    pipeline = _pixel_pipeline(how, int(rng.integers(2**31)))
    return np.ascontiguousarray(pipeline.augment_image(stained), np.uint8)


def load_imgaug() -> ModuleType:
    """`imgaug.augmenters`. imgaug 0.4.0 reads `np.sctypes`, which NumPy 2 dropped, once, while it is imported."""
    with _sctypes_present():
        return importlib.import_module("imgaug.augmenters")


@contextmanager
def _sctypes_present() -> Iterator[None]:
    if hasattr(np, "sctypes"):
        yield
        return
    numpy: Any = np
    numpy.sctypes = {
        "int": [np.int8, np.int16, np.int32, np.int64],
        "uint": [np.uint8, np.uint16, np.uint32, np.uint64],
        "float": [np.float16, np.float32, np.float64],
        "complex": [np.complex64, np.complex128],
        "others": [bool, object, bytes, str, np.void],
    }
    try:
        yield
    finally:
        del numpy.sctypes


def _pixel_pipeline(how: Strength, seed: int) -> Any:
    """hover_net's pixel-level chain: one of blur, median and noise, then colour in any order."""
    iaa = load_imgaug()
    hue = round(how.hue * 255 / 180)  # imgaug stretches the circle of hues to 0..255
    pipeline = iaa.Sequential(
        [
            iaa.OneOf(
                [
                    iaa.GaussianBlur((0, how.blur)),
                    iaa.MedianBlur((1, 3)),
                    iaa.AdditiveGaussianNoise(scale=(0, how.noise), per_channel=True),
                ]
            ),
            iaa.WithHueAndSaturation(  # one conversion for both
                [
                    iaa.WithChannels(0, iaa.Add((-hue, hue))),
                    iaa.WithChannels(1, iaa.Multiply((1 - how.saturation, 1 + how.saturation))),
                ]
            ),
            iaa.Add((-how.brightness, how.brightness)),
            iaa.LinearContrast((1 - how.contrast, 1 + how.contrast)),
        ],
        random_order=True,
    )
    pipeline.seed_(seed)  # and every part of it: `Sequential(seed=...)` would leave the parts on imgaug's global state
    return pipeline


def random_turn(square: bool, rng: np.random.Generator) -> tuple[int, bool]:
    """Quarter turns (an even number where the image is not square), and whether it is mirrored."""
    quarters = int(rng.integers(4)) if square else 2 * int(rng.integers(2))
    return quarters, bool(rng.integers(2))


def apply_turn(array: Any, turn: tuple[int, bool]) -> Any:
    """An array (H, W, ...) turned by quarters and then perhaps mirrored, as `random_turn` says; contiguous."""
    quarters, mirrored = turn
    turned = np.rot90(array, quarters)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)


def _random_affine(shape: tuple[int, ...], rng: np.random.Generator) -> Any:
    """float64 (2, 3): x, y of the source -> x, y of the result, about the centre."""
    angle, shear = rng.uniform(-np.pi, np.pi), np.deg2rad(rng.uniform(-5, 5))
    rotation = np.array([[np.cos(angle), -np.sin(angle + shear)], [np.sin(angle), np.cos(angle + shear)]])
    linear = rotation * rng.uniform(0.8, 1.2, 2)
    centre = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    return np.column_stack([linear, centre - linear @ centre])


def _warp(tile: LabelledTile, matrix: Any) -> LabelledTile:
    size = tile.inst_map.shape[::-1]
    image = cv2.warpAffine(tile.image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    # OpenCV warps no int32; float64 holds every id exactly, and nearest neighbours make no new ones.
    inst_map = cv2.warpAffine(tile.inst_map.astype(np.float64), matrix, size, flags=cv2.INTER_NEAREST)
    trusted = cv2.warpAffine(tile.trusted.view(np.uint8), matrix, size, flags=cv2.INTER_NEAREST)
    type_map = None
    if tile.type_map is not None:
        type_map = np.asarray(cv2.warpAffine(tile.type_map, matrix, size, flags=cv2.INTER_NEAREST), np.uint8)
    return LabelledTile(np.asarray(image, np.uint8), inst_map.astype(np.int32), trusted.astype(bool), type_map)

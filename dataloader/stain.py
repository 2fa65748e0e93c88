"""Stain separation in optical density, and its jitter.

Beer-Lambert: OD = -log10((I + 1) / 256) is linear in the amounts of dye. The stain vectors are those of Ruifrok and
Johnston, "Quantification of histochemical staining by color deconvolution", Anal Quant Cytol Histol 23 (2001) 291-299.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from hovernet_cyclic.core.types import Float32Array, UInt8Array

_RUIFROK = ((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))  # haematoxylin, eosin, DAB in RGB


def optical_density(image: UInt8Array) -> Float32Array:
    """-log10((I + 1) / 256) of each channel: uint8 (H, W, 3) RGB -> float32 (H, W, 3), 0 (white) to 2.41 (black)."""
    return _density_table()[image]


def rgb_to_hed(image: UInt8Array) -> Float32Array:
    """Colour deconvolution (Ruifrok and Johnston 2001): uint8 (H, W, 3) RGB -> float32 (H, W, 3).

    Channels are the amounts of haematoxylin, eosin and DAB, in optical density along unit stain vectors; a colour that
    is no mixture of them gives negative amounts, which are kept.
    """
    return np.asarray(optical_density(image) @ _unmixing(), np.float32)


def haematoxylin(image: UInt8Array) -> Float32Array:
    """The first channel of `rgb_to_hed`: uint8 (H, W, 3) RGB -> float32 (H, W)."""
    return np.asarray(optical_density(image) @ _unmixing()[:, 0], np.float32)


def mean_haematoxylin(pixels: UInt8Array) -> float:
    """Mean haematoxylin of pixels, uint8 (N, 3) RGB. Unmixing is linear, so the mean density is what is unmixed."""
    density = [float(_density_table()[pixels[:, channel]].mean(dtype=np.float64)) for channel in range(3)]
    return sum(value * float(weight) for value, weight in zip(density, _unmixing()[:, 0], strict=True))


def stain_vectors() -> Float32Array:
    """float32 (3, 3): rows are the unit vectors of haematoxylin, eosin and DAB in (red, green, blue) density."""
    vectors = np.array(_RUIFROK)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def jitter_stain(image: UInt8Array, rng: np.random.Generator, scale: float, shift: float) -> UInt8Array:
    """The image as another laboratory might have stained it: uint8 (H, W, 3) RGB -> the same.

    Haematoxylin and eosin are multiplied by 1 +- `scale` and raised by +- `shift` OD, each on its own; the third
    component stays.
    """
    factors = np.append(1 + rng.uniform(-scale, scale, 2), 1)
    offsets = np.append(rng.uniform(-shift, shift, 2), 0)
    return restain(image, factors, offsets)


def restain(image: UInt8Array, factors: npt.ArrayLike, offsets: npt.ArrayLike) -> UInt8Array:
    """Multiplies the stains of `rgb_to_hed` by `factors` (3,) and adds `offsets` (3,) OD: uint8 (H, W, 3) -> the same.

    One 3 x 3 matrix does it: unmix, scale and mix again.
    """
    vectors = stain_vectors().astype(np.float64)
    mix = (np.linalg.inv(vectors) * np.asarray(factors)) @ vectors
    density = optical_density(image) @ mix.astype(np.float32) + (np.asarray(offsets) @ vectors).astype(np.float32)
    light = np.exp2(density * np.float32(-np.log2(10)) + np.float32(8)) - np.float32(0.5)  # -1, and +.5 to round
    return np.asarray(np.clip(light, 0, 255), np.uint8)


@cache
def _density_table() -> Float32Array:
    return np.asarray(-np.log10((np.arange(256) + 1) / 256), np.float32)


@cache
def _unmixing() -> Float32Array:
    return np.asarray(np.linalg.inv(stain_vectors().astype(np.float64)), np.float32)

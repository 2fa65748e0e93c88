"""From amounts of dye to pixels: Beer-Lambert's law with jittered stain vectors, then the microscope and its camera."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from dataloader.datasets.demo_tissue import Tissue
from hovernet_cyclic.core.types import Float32Array, UInt8Array

# Unit optical densities (red, green, blue) as measured on H&E tiles of nine organs; red cells are more orange.
HAEMATOXYLIN = (0.60, 0.70, 0.39)
EOSIN = (0.16, 0.84, 0.52)
BLOOD = (0.10, 0.72, 0.69)


class Stain(NamedTuple):
    """One laboratory's colours. vectors: float32 (3, 3), rows haematoxylin, eosin, blood; strength: float32 (3,).

    white: grey value of empty glass. blur: standard deviation px. noise: standard deviation in grey values.
    """

    vectors: Float32Array
    strength: Float32Array
    white: float
    blur: float
    noise: float


def random_stain(rng: np.random.Generator) -> Stain:
    """A stain within the variation between real slides."""
    vectors = np.array([HAEMATOXYLIN, EOSIN, BLOOD]) + rng.normal(0, (0.05, 0.03, 0.04), (3, 3))
    vectors = np.clip(vectors, 0.03, None)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    strength = np.exp(rng.normal(0, (0.20, 0.22, 0.15)))
    return Stain(
        vectors.astype(np.float32),
        strength.astype(np.float32),
        float(rng.uniform(232, 250)),
        float(rng.uniform(0.6, 1.1)),
        float(rng.uniform(1.5, 3.5)),
    )


def photograph(tissue: Tissue, stain: Stain, rng: np.random.Generator) -> UInt8Array:
    """The field as a scanner stores it: uint8 (H, W, 3) RGB. Light is white * 10^-OD (Beer-Lambert)."""
    dyes = np.dstack([tissue.haematoxylin, tissue.eosin, tissue.blood]) * stain.strength
    light = np.asarray(stain.white * np.power(10.0, -(dyes @ stain.vectors)), np.float32)
    light = np.asarray(cv2.GaussianBlur(light, (0, 0), stain.blur), np.float32)
    grain = cv2.GaussianBlur(rng.standard_normal(light.shape, dtype=np.float32), (0, 0), 0.6)
    return np.asarray(np.clip(light + 1.9 * stain.noise * grain, 0, 255), np.uint8)

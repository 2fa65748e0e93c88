"""Seeds of a run. The device it runs on is models/devices.py's."""

from __future__ import annotations

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch: what a recipe draws outside its own seeded generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - imgaug and scikit-image read the global state
    torch.manual_seed(seed)

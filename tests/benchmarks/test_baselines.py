"""The rival of the accuracy table must itself work, or the table flatters us."""

import numpy as np
import pytest

from benchmarks.baselines import otsu_watershed
from dataloader.datasets.demo import draw_field
from dataloader.datasets.demo_stain import photograph, random_stain
from hovernet_cyclic.core.metrics import score


def test_it_finds_the_nuclei_of_drawn_tissue() -> None:
    rng = np.random.default_rng(3)
    tissue = draw_field(256, rng)
    found = score(tissue.inst_map, otsu_watershed(photograph(tissue, random_stain(rng), rng)))
    assert found.dice > 0.6
    assert found.aji > 0.3


@pytest.mark.parametrize("grey", [0, 128, 255])
def test_a_flat_image_gives_a_label_map_and_no_crash(grey: int) -> None:
    image = np.full((64, 80, 3), grey, np.uint8)
    inst_map = otsu_watershed(image)
    assert inst_map.shape == (64, 80)
    assert inst_map.dtype == np.int32

"""CoNSeP (Graham et al., 2019), as its makers publish it and as the Cyclic Learning code lays it out.

DATA_DIR/CoNSeP/{Train,Test}/Images/*.png             1000 x 1000 px
DATA_DIR/CoNSeP/{Train,Test}/Labels/*.mat             inst_map, type_map (H, W); inst_type (N, 1), inst_centroid (N, 2)
DATA_DIR/consepcrop/{Train,Valid,Test}/Images/*.png   crops of these; Labels/*.mat: inst_map and type_map, or
                                                      instance_map and class_map; Instance_mask/<image>/*.png
DATA_DIR/MyNP/{positive,negative}/*.png               the image-level labels

Types in the files: 1 other, 2 inflammatory, 3 healthy epithelial, 4 dysplastic or malignant epithelial, 5 fibroblast,
6 muscle, 7 endothelial. The paper joins 3 and 4 to epithelial, and 5 to 7 to spindle-shaped: ask for MERGED_TYPES.

Published as 27 training and 14 test images of colon with 24,319 nuclei, 40x (0.25 um/px). Licence: stated differently
by different sources, so treat it as research-only. Cite Graham et al., HoVer-Net, Medical Image Analysis 58, 2019.
"""

from __future__ import annotations

from pathlib import Path

from dataloader.datasets.mat_splits import Layout, open_mat_splits
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import DataSplits

MPP = 0.25
TYPES = (
    "background",
    "other",
    "inflammatory",
    "healthy epithelial",
    "malignant epithelial",
    "fibroblast",
    "muscle",
    "endothelial",
)
MERGED_TYPES = ("background", "other", "inflammatory", "epithelial", "spindle")
LAYOUT = Layout(roots=("consepcrop", "CoNSeP"), types=TYPES, mpp=MPP, merges={MERGED_TYPES: (0, 1, 2, 3, 3, 4, 4, 4)})


def open_consep(data: DataSettings, data_dir: Path, with_patches: bool = True) -> DataSplits:
    """The splits of CoNSeP: see `open_mat_splits`. data.type_names is empty, TYPES, or MERGED_TYPES."""
    return open_mat_splits(LAYOUT, data, data_dir, with_patches)

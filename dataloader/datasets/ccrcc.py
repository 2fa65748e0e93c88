"""Nuclei of clear cell renal cell carcinoma, graded (Gao et al., MICCAI 2021), as the Cyclic Learning code lays it out.

DATA_DIR/ccrcccrop/{Train,Valid,Test}/Images/*.png     512 x 512 px, or crops of them (<name>_x0y1.png, 256 x 256)
DATA_DIR/ccrcccrop/{Train,Valid,Test}/Labels/*.mat     instance_map; class_map: 1 to 3 grades of tumour nuclei, 4
                                                       endothelial; both (H, W), 0 background
DATA_DIR/MyNP/{positive,negative}/*.png                the image-level labels

Published as 700 training, 100 validation and 200 test images with 70,945 nuclei. 40x (0.25 um/px), from TCGA-KIRC.
Licence: its card says Apache-2.0 and "for research purposes only": treat it as research-only. Cite Gao et al., Nuclei
Grading of Clear Cell Renal Cell Carcinoma in Histopathological Image by Composite High-Resolution Network, MICCAI 2021.
"""

from __future__ import annotations

from pathlib import Path

from dataloader.datasets.mat_splits import Layout, open_mat_splits
from hovernet_cyclic.core.settings import DataSettings
from hovernet_cyclic.core.types import DataSplits

MPP = 0.25
TYPES = ("background", "grade 1", "grade 2", "grade 3", "endothelial")
LAYOUT = Layout(roots=("ccrcccrop", "ccRCC"), types=TYPES, mpp=MPP, merges={})


def open_ccrcc(data: DataSettings, data_dir: Path, with_patches: bool = True) -> DataSplits:
    """The splits of ccRCC: see `open_mat_splits`. data.type_names is empty, or TYPES."""
    return open_mat_splits(LAYOUT, data, data_dir, with_patches)

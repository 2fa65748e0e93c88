"""The method: cyclic learning, from image-level labels to a segmentation checkpoint."""

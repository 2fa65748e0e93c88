"""Nuclei instance segmentation in H&E learnt from image-level labels alone."""

__version__ = "0.1.0"

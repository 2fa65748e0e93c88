"""Slide files behind one protocol (`SlideReader` of core/types.py), one back-end a module."""

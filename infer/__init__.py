"""The inference engine: patches to tiles, tiles to files."""

"""Values, settings, geometry and scores: NumPy only, no torch and no file formats."""

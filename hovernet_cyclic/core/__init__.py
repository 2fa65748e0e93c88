"""Values, settings, geometry and scores: arrays only, no torch and no file formats."""

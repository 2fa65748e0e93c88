"""The front end: a patch classifier and the activation maps read from it."""

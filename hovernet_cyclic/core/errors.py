"""Errors that a user can cure. Each message is one sentence that names the file and the cure."""


class HoverNetCyclicError(Exception):
    """Base of every error that the command line prints as one sentence with exit code 2."""


class DatasetError(HoverNetCyclicError):
    """An image, a label or a folder of a data set cannot be used as it is."""


class SlideError(HoverNetCyclicError):
    """A slide cannot be read, or lacks what is needed to read it at the right scale."""


class UnreadableRegionError(SlideError):
    """A region of a slide cannot be read; the rest of it may."""


class CheckpointError(HoverNetCyclicError):
    """A checkpoint cannot be read, or disagrees with what was asked."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is torn, or a part of it has changed since it was written."""


class RecipeError(HoverNetCyclicError):
    """A recipe or a command-line option holds a value that cannot work."""


class TrainingError(HoverNetCyclicError):
    """Training went where it cannot go on from: what it learns from, or how, must change."""

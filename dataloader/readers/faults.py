"""What a back-end says of a slide that it cannot read, and what it takes for a scale."""

from __future__ import annotations

from pathlib import Path

from hovernet_cyclic.core.errors import SlideError, UnreadableRegionError
from hovernet_cyclic.core.types import Box

# um/px of a level 0 that was scanned with a microscope. Files hold what an image was meant to be printed at: 352.8 (72
# dots an inch), 42.3 (600); and a nucleus of 10 um must be more than a pixel.
PLAUSIBLE_MPP = (0.02, 10.0)


def is_remote(path: str) -> bool:
    """Whether a path is an address such as s3://bucket/slide.tif, which fsspec opens."""
    return "://" in path


def read_fault(path: str, level: int, box: Box, error: BaseException) -> SlideError:
    """The error for a region that could not be read, or for a slide that is no longer there."""
    if not is_remote(path) and not Path(path).exists():
        return SlideError(f"{path} vanished while it was read: put it back and run again.")
    return UnreadableRegionError(
        f"{path}: rows {box.top} to {box.bottom}, columns {box.left} to {box.right} of level {level} cannot be read "
        f"({first_line(error)}): copy the slide again."
    )


def damaged(path: str, error: BaseException) -> SlideError:
    """The error for a file that cannot even be opened."""
    return SlideError(f"{path} is damaged or no slide that can be read ({first_line(error)}): copy it again.")


def first_line(error: BaseException) -> str:
    """What a library said, in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def plausible_mpp(down: float | None, across: float | None) -> tuple[float, float] | None:
    """(down, across) um/px where both are known and can be a microscope's, else None."""
    lowest, highest = PLAUSIBLE_MPP
    if down is None or across is None or not (lowest <= down <= highest and lowest <= across <= highest):
        return None
    return down, across

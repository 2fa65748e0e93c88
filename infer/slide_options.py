"""The slide mode's own options, checked: light, so that the command line answers at once."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hovernet_cyclic.core.errors import RecipeError

if TYPE_CHECKING:
    from infer.slides import SlideSettings
    from infer.type_info import TypeInfo

UM_OF_MAGNIFICATION_1 = 10.0
USUAL_MAGNIFICATION = 40.0  # of hover_net's published networks


def checked_wsi(own: Mapping[str, Any]) -> dict[str, Any]:
    """The slide mode's own options as numbers, by name without dashes. Raises RecipeError for what cannot work."""
    wanted: dict[str, Any] = {name.lstrip("-"): value for name, value in own.items()}
    wanted |= {name: above_zero(f"--{name}", own[f"--{name}"]) for name in ("mpp", "proc_mag", "max_memory")}
    if own["--tile_shape"] is not None and not re.fullmatch("[1-9][0-9]{0,5}", own["--tile_shape"]):
        raise RecipeError(f"--tile_shape={own['--tile_shape']}: give a whole number of px, such as 2048.")
    wanted["tile_shape"] = None if own["--tile_shape"] is None else int(own["--tile_shape"])
    wanted["region"] = box_of("--region", own["--region"])
    mask_dir = own["--input_mask_dir"]
    if mask_dir is not None and not Path(mask_dir).is_dir():
        raise RecipeError(f"--input_mask_dir={mask_dir}: this folder does not exist.")
    if mask_dir is not None and own["--whole_slide"]:
        raise RecipeError("--whole_slide and --input_mask_dir exclude each other: leave one out.")
    return wanted


def above_zero(option: str, text: str | None) -> float | None:
    """The number of an option, None where it was not given. Raises RecipeError for what is no number above 0."""
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", text) or float(text) <= 0:
        raise RecipeError(f"{option}={text}: give a number above 0, such as 0.25.")
    return float(text)


def box_of(option: str, text: str | None) -> tuple[int, int, int, int] | None:
    """x, y, width and height of an option, None where it was not given. Raises RecipeError for others."""
    if text is None:
        return None
    numbers = re.fullmatch(r"([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9}),([0-9]{1,9})", text)
    if not numbers or 0 in (int(numbers[3]), int(numbers[4])):
        raise RecipeError(f"{option}={text}: give x,y,width,height in px, such as 1000,2000,512,512.")
    return int(numbers[1]), int(numbers[2]), int(numbers[3]), int(numbers[4])


def slide_settings(
    wanted: Mapping[str, Any], shared: Mapping[str, Any], types: TypeInfo, mpp: float | None, precision: str
) -> SlideSettings:
    """How slides are segmented. wanted: of `checked_wsi`; shared: the options before the mode. mpp: um/px of the
    network, None where it does not say. precision: of its arithmetic. Raises RecipeError.
    """
    from infer.slide_estimate import GIB, SHARE_OF_PATCH, choose_window
    from infer.slide_outputs import SlideFolder
    from infer.slide_plan import SlideRequest
    from infer.slides import SlideSettings

    nr_types, workers = len(types.types), shared["nr_post_proc_workers"]
    root = Path(wanted["output_dir"])
    request = SlideRequest(
        mpp=network_mpp(mpp, wanted["proc_mag"]),
        slide_mpp=wanted["mpp"],
        region=wanted["region"],
        mask_dir=None if wanted["input_mask_dir"] is None else Path(wanted["input_mask_dir"]),
        find_tissue=not wanted["whole_slide"],
        window=choose_window(wanted["tile_shape"], wanted["max_memory"], nr_types, workers, shared["views"]),
    )
    network = {"sha256": _digest(Path(shared["model_path"])), "precision": precision}
    if shared["views"] > 1:  # not named otherwise, so that what was finished before there were views stays so
        network["views"] = shared["views"]
    return SlideSettings(
        request=request,
        outputs=SlideFolder(root, types, wanted["save_thumb"], wanted["save_mask"]),
        cache=Path(wanted["cache_path"]) if wanted["cache_path"] else root / ".journal",
        network=network,
        nr_types=nr_types,
        readers=max(1, shared["nr_inference_workers"]),
        workers=workers,
        patch_bytes=(wanted["max_memory"] or 3.0) * GIB * SHARE_OF_PATCH,
        views=shared["views"],
    )


def network_mpp(mpp: float | None, magnification: float | None) -> float:
    """um/px that slides are read at. mpp: of the network. Raises RecipeError where --proc_mag says otherwise."""
    if mpp is None:
        return UM_OF_MAGNIFICATION_1 / (magnification or USUAL_MAGNIFICATION)
    if magnification is not None and abs(UM_OF_MAGNIFICATION_1 / magnification / mpp - 1) > 0.02:
        raise RecipeError(
            f"--proc_mag={magnification:g} is {UM_OF_MAGNIFICATION_1 / magnification:g} um/px and the network wants "
            f"{mpp:g}: leave it out."
        )
    return mpp


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

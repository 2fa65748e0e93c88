"""Segment the nuclei of H&E images with a trained network.

Usage:
  run_infer.py [options] <mode> [<args>...]
  run_infer.py (-h | --help)
  run_infer.py --version

Modes, each with options of its own, which follow it (see: run_infer.py tile --help):
  tile    Images of a folder.
  wsi     Whole slides.

Options, which stand before the mode:
  -h --help                   Show this text.
  --version                   Show the version.
  --model_path=<file>         The network: net.tar of a run of run_train.py, or a .tar of hover_net.
  --gpu=<ids>                 Comma list such as 0,1 (images are shared out), or cpu. If not given: the first GPU
                              if there is one, else the CPU.
  --precision=<name>          fp32, bf16 (faster, outlines differ by single pixels), or auto: bf16 where the device has
                              it built in, but fp32 for the network 'small' on a CPU. [default: auto]
  --batch_size=<n>            Patches at a time; 4 on a GPU and 1 on the CPU if not given. Patches are large.
  --views=<n>                 Ask from n sides (the image turned, mirrored; 1 to 8), and take the mean: a little more
                              accurate, for n times the work; 4 is enough. [default: 1]
  --post_proc=<name>          local, or hovernet: its patches and its arithmetic. The network's recipe if not given.
  --type_info_path=<file>     JSON with the name and colour of each type: {"1": ["neopla", [255, 0, 0]], ...}.
  --nr_inference_workers=<n>  Threads that read images ahead. [default: 1]
  --nr_post_proc_workers=<n>  Processes that post-process and write; 0: none apart. As cores and images if not given.
  --nr_types=<n>              Need not be given: the network's file says it. Another value is an error; 0 is no types.
  --model_mode=<name>         Need not be given: as --nr_types. original, fast or small.

Exit code: 0 all images done, 1 some image could not be processed, 2 bad input.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hovernet_cyclic.command_faults import path_fault
from hovernet_cyclic.command_line import exit_with, whole_number
from hovernet_cyclic.core.errors import CheckpointError, HoverNetCyclicError, RecipeError

if TYPE_CHECKING:
    from hovernet_cyclic.core.settings import TrainRecipe
    from infer.slides import SlideFiles
    from infer.tile import Summary, TileFiles
    from infer.type_info import TypeInfo
    from models.checkpoint import LoadedNetwork
    from models.devices import Device

TILE = """Segment every image of a folder. Images must be at the scale that the network was trained at.

Usage:
  run_infer.py tile --input_dir=<dir> --output_dir=<dir> [options]
  run_infer.py tile (-h | --help)

Options, which follow the mode (others stand before it, see: run_infer.py --help):
  -h --help           Show this text.
  --input_dir=<dir>   8-bit RGB images: png, jpg, jpeg, tif, tiff, bmp, not in subfolders. A single file will do.
  --output_dir=<dir>  Made if need be. Results of images of the same name are replaced, others are left alone.
  --draw_dot          Mark the centroid of each nucleus on the overlay.
  --save_qupath       Also write qupath/NAME.tsv (as hover_net did; geojson/NAME.geojson holds more).
  --save_raw_map      Also put the network's maps into mat/NAME.mat: [type,] probability, h, v.
  --mem_usage=<x>     Accepted and of no meaning any more: a few images are in memory at a time.

Written for the image NAME.png:
  json/NAME.json        box, centroid, contour and type of each nucleus, as hover_net writes them; and type_probs
  mat/NAME.mat          inst_map, inst_uid, inst_type, inst_centroid; and inst_type_probs
  overlay/NAME.png      the image with its nuclei outlined
  geojson/NAME.geojson  detections for QuPath: drag it onto the open image
"""

WSI = """Segment whole slides. What was finished before is skipped, and a run that was stopped goes on where it was.

Usage:
  run_infer.py wsi --input_dir=<dir> --output_dir=<dir> [options]
  run_infer.py wsi (-h | --help)

Options, which follow the mode (others stand before it, see: run_infer.py --help):
  -h --help               Show this text.
  --input_dir=<dir>       Slides: SVS, NDPI, MRXS, SCN, BIF, DICOM, TIFF, OME-TIFF, OME-Zarr, PNG, JPEG. A single one
                          will do, and for TIFF and OME-Zarr an address (s3://, gs://, https://).
  --output_dir=<dir>      Made if need be.
  --cache_path=<dir>      Where unfinished work is kept; OUTPUT/.journal if not given.
  --mpp=<x>               um/px of the slides' finest level, for slides that do not say it, or say it wrongly.
  --proc_mag=<n>          Magnification to work at, for networks of hover_net, which do not say it; 40 if not given.
  --input_mask_dir=<dir>  Where nuclei are wanted, for each slide: NAME.png (0: not here) or NAME.geojson (of QuPath).
  --whole_slide           Look for no tissue: work on all of the slide.
  --region=<x,y,w,h>      Only this part, in px of the finest level.
  --tile_shape=<px>       Side of what is worked on at once; 2048, or less by --max_memory, if not given.
  --max_memory=<GiB>      Stay below this.
  --save_thumb            Also write thumb/NAME.png.
  --save_mask             Also write mask/NAME.png, where tissue was found, 8 um/px.
  --dry_run               Only say what would be done: scale, tissue, time, memory, disk.
  --ambiguous_size=<px>   Accepted and of no meaning any more: nuclei at seams are exact.
  --chunk_shape=<px>      Accepted and of no meaning any more: a few tiles are in memory at a time.

Written for the slide NAME.svs, in px of its finest level:
  json/NAME.json          box, centroid, contour and type of each nucleus, as hover_net writes them
  geojson/NAME.geojson    detections for QuPath 0.5 and later, with classes and measurements
  parquet/NAME.parquet    the same as GeoParquet, for millions of nuclei
  overlay/NAME.png        the slide at a glance with its nuclei outlined
  density/NAME.png        nuclei per mm2
  tissue/NAME.png         what was taken for tissue
  info/NAME.json          counts, scale and what could not be read
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code. argv: arguments without the program's name."""
    from docopt import DocoptExit, docopt

    from hovernet_cyclic import __version__

    words = list(sys.argv[1:] if argv is None else argv)
    mode = ""
    try:
        shared = docopt(__doc__ or "", words, version=__version__, options_first=True)
        mode, words = shared["<mode>"], shared["<args>"]
        if mode not in ("tile", "wsi"):
            raise RecipeError(f"The mode is '{mode}': use tile or wsi.\n{DocoptExit.usage.strip()}")
        return wsi(shared, docopt(WSI, [mode, *words])) if mode == "wsi" else tile(shared, docopt(TILE, [mode, *words]))
    except DocoptExit as error:
        fault = str(error).splitlines()[0]
        if fault.startswith(("Warning", "Usage")):  # docopt says no more than that it does not fit
            fault = usage_fault(words, mode)
        print(f"{fault}\n{DocoptExit.usage.strip()}", file=sys.stderr)
        return 2
    except HoverNetCyclicError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(path_fault(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "Stopped. What is finished is kept, and the mode wsi goes on where it was when it is called again.",
            file=sys.stderr,
        )
        return 130


def usage_fault(words: Sequence[str], mode: str) -> str:
    """What is wrong with a command line, in a sentence. mode: '' where none was read; words: those after it, or all."""
    shared = options_in(__doc__ or "")
    known = options_in({"tile": TILE, "wsi": WSI}[mode]) if mode else shared
    given = [word.partition("=")[0] for word in words if word.startswith("-")]
    unknown = next((name for name in given if name not in known), None)
    if unknown is None:
        needs = f"The mode {mode} needs --input_dir and --output_dir, and no other words."
        return needs if mode else "Give a mode: tile or wsi."
    if mode and unknown in shared:
        return f"{unknown} stands before the mode: run_infer.py {unknown}=... {mode} ..."
    for name, text in (("tile", TILE), ("wsi", WSI)):
        if not mode and unknown in options_in(text):
            return f"{unknown} stands after the mode: run_infer.py ... {name} {unknown} ..."
    return f"There is no option {unknown}{f' of the mode {mode}' if mode else ''}."


def options_in(text: str) -> list[str]:
    """The options that a help text explains."""
    return [*re.findall(r"(?m)^ +(?:-h )?(--\w+)", text), "-h"]


def wsi(shared: Mapping[str, Any], own: Mapping[str, Any]) -> int:
    """Segment slides. shared, own: the options before and after the mode."""
    settings = checked_settings(shared)
    if settings["post_proc"] == "hovernet":
        raise RecipeError("--post_proc=hovernet depends on how a slide is cut into tiles: leave it out with wsi.")
    from infer.slide_options import checked_wsi

    check_folders(own)
    wanted = checked_wsi(own)
    from infer.slides import list_slides
    from infer.tile import check_writable

    slides = list_slides(own["--input_dir"])
    check_writable(Path(own["--output_dir"]))
    for name in ("--ambiguous_size", "--chunk_shape"):
        if own[name] is not None:
            print(f"{name} no longer means anything: see run_infer.py wsi --help.")
    faults = run_slides(settings, wanted, slides)
    if slides.left_out:
        print("Not slides, and left out:", *slides.left_out, sep="\n  ", file=sys.stderr)
    if faults:
        print("Not all could be processed:", *faults, sep="\n  ", file=sys.stderr)
    return 1 if faults else 0


def run_slides(settings: Mapping[str, Any], wanted: Mapping[str, Any], slides: SlideFiles) -> list[str]:
    """Load the network and put the slides through it. Returns a sentence for each that could not be processed."""
    from infer.base import segmenters_of
    from infer.slide_estimate import choose_workers, largest_patch
    from infer.slide_options import slide_settings
    from infer.slides import dry_run, segment_and_report
    from infer.views import MeanOfViews

    devices, loaded = load(settings)
    recipe = recipe_of(loaded)
    patch = largest_patch(loaded.mode, devices[0].torch_device.type, wanted["max_memory"])
    nets = segmenters_of(loaded, devices, settings["batch_size"], patch)
    segmenters = [MeanOfViews(net, settings["views"]) for net in nets]
    types = types_of(loaded, recipe, settings["type_info_path"])
    precision = str(devices[0].dtype).removeprefix("torch.")
    asked, place = settings["nr_post_proc_workers"], devices[0].torch_device.type
    workers = choose_workers(asked, place, wanted["max_memory"], len(types.types), settings["views"])
    run = slide_settings(
        wanted, {**settings, "nr_post_proc_workers": workers}, types, recipe.data.mpp if recipe else None, precision
    )
    if recipe:
        run = dataclasses.replace(run, smallest=recipe.smallest_area)
    print(describe(loaded, recipe, settings["model_path"]).replace("give images", "slides are read"))
    if settings["views"] > 1:
        print(f"Each window is asked about from {settings['views']} sides.")
    return (dry_run if wanted["dry_run"] else segment_and_report)(slides.slides, segmenters, run)


def tile(shared: Mapping[str, Any], own: Mapping[str, Any]) -> int:
    """Segment the images of a folder. shared, own: the options before and after the mode."""
    settings = checked_settings(shared)
    check_folders(own)
    from infer.tile import check_writable, list_tiles

    tiles = list_tiles(own["--input_dir"])
    check_writable(Path(own["--output_dir"]))
    if own["--mem_usage"] is not None:
        print("--mem_usage no longer means anything: a few images are in memory at a time.")
    summary = run_tiles(settings, own, tiles)
    report(summary, tiles, Path(own["--output_dir"]))
    return 1 if summary.failures else 0


def check_folders(own: Mapping[str, Any]) -> None:
    """Raises RecipeError for a folder that is named by nothing, as an unset variable of a shell does."""
    for name in ("--input_dir", "--output_dir"):
        if not own[name]:
            raise RecipeError(f"{name} is empty: give a folder.")


def checked_settings(shared: Mapping[str, Any]) -> dict[str, Any]:
    """The shared options by name without dashes, numbers as int. Raises RecipeError for what cannot work.

    Options that were not given and have no default are None.
    """
    from hovernet_cyclic.core.settings import MOST_VIEWS

    settings = {name.lstrip("-"): value for name, value in shared.items() if name.startswith("--")}
    settings["type_info_path"] = settings["type_info_path"] or None  # hover_net's own default is an empty one
    if not settings["model_path"]:
        raise RecipeError("--model_path must be given before the mode: the net.tar of a run, or a .tar of hover_net.")
    lowest = {"batch_size": 1, "nr_inference_workers": 0, "nr_post_proc_workers": 0, "nr_types": 0}
    for name, low in lowest.items():
        if settings[name] is not None:
            settings[name] = whole_number(f"--{name}", settings[name], low)
    settings["views"] = whole_number("--views", settings["views"], 1, MOST_VIEWS)
    choices = {
        "precision": ("auto", "fp32", "bf16"),
        "post_proc": ("local", "hovernet"),
        "model_mode": ("original", "fast", "small"),
    }
    for name, allowed in choices.items():
        if settings[name] is not None and settings[name] not in allowed:
            raise RecipeError(f"--{name}={settings[name]}: use one of {', '.join(allowed)}.")
    return settings


def run_tiles(settings: Mapping[str, Any], own: Mapping[str, Any], tiles: TileFiles) -> Summary:
    """Load the network and put the images through it."""
    from infer.base import reference_segmenters_of, segmenters_of
    from infer.finish import Finisher
    from infer.tile import Workers, segment_folder
    from infer.views import MeanOfViews
    from infer.writers import OutputFolder

    devices, loaded = load(settings)
    recipe = recipe_of(loaded)
    variant = settings["post_proc"] or (recipe.net.post_proc if recipe else "local")
    as_published = variant == "hovernet"
    nets = (reference_segmenters_of if as_published else segmenters_of)(loaded, devices, settings["batch_size"])
    segmenters = [MeanOfViews(net, settings["views"]) for net in nets]
    outputs = OutputFolder(
        Path(own["--output_dir"]),
        types_of(loaded, recipe, settings["type_info_path"]),
        **{name: own[f"--{name}"] for name in ("draw_dot", "save_qupath", "save_raw_map")},
    )
    print(describe(loaded, recipe, settings["model_path"]))
    precision = str(devices[0].dtype).removeprefix("torch.")
    places = ", ".join(str(device.torch_device) for device in devices)
    views = "" if settings["views"] == 1 else f"{settings['views']} views, "
    print(f"{counted(len(tiles.images))} on {places}, {precision}, {views}post-processing '{variant}'")
    finisher = Finisher(outputs, variant, recipe.data.mpp if recipe else None)
    if recipe:
        finisher = dataclasses.replace(finisher, smallest=recipe.smallest_area)
    workers = Workers(settings["nr_inference_workers"], finish_workers(settings, len(tiles.images)))
    return segment_folder(segmenters, tiles.images, finisher, workers)


def load(settings: Mapping[str, Any]) -> tuple[list[Device], LoadedNetwork]:
    """The devices of --gpu, and the network. Raises RecipeError or CheckpointError."""
    from infer.base import usual_precision
    from models.checkpoint import load_network
    from models.devices import choose_devices, keep_freed_memory

    keep_freed_memory()
    devices = choose_devices(settings["gpu"], settings["precision"])
    loaded = load_network(settings["model_path"])
    if settings["precision"] == "auto":
        devices = [usual_precision(loaded.mode, device) for device in devices]
    check_network(loaded, settings)
    return devices, loaded


def check_network(loaded: LoadedNetwork, settings: Mapping[str, Any]) -> None:
    """Raises CheckpointError where a flag says otherwise than the network's file."""
    path, mode, nr_types = settings["model_path"], settings["model_mode"], settings["nr_types"]
    if mode is not None and mode != loaded.mode:
        raise CheckpointError(
            f"{path}: this network has the mode '{loaded.mode}' and --model_mode={mode} says otherwise: leave that out."
        )
    if nr_types is not None and (nr_types or None) != loaded.nr_types:
        told = "no types" if loaded.nr_types is None else f"{loaded.nr_types} types (background is one)"
        raise CheckpointError(
            f"{path}: this network tells {told} and --nr_types={nr_types} says otherwise: leave that out."
        )


def recipe_of(loaded: LoadedNetwork) -> TrainRecipe | None:
    """The recipe that a network was trained by; None for one of hover_net. Raises RecipeError."""
    from hovernet_cyclic.core.settings import TrainRecipe

    return None if loaded.recipe is None else TrainRecipe.from_dict(loaded.recipe)


def types_of(loaded: LoadedNetwork, recipe: TrainRecipe | None, path: str | None) -> TypeInfo:
    """Names and colours of the network's types. path: --type_info_path. Raises DatasetError, RecipeError."""
    from infer.type_info import default_type_info, read_type_info

    if path is None:
        return default_type_info(loaded.nr_types, recipe.data.type_names if recipe else ())
    if loaded.nr_types is None:
        raise RecipeError(f"--type_info_path={path}: this network tells no types: leave that out.")
    info = read_type_info(path, loaded.nr_types)
    if len(info.types) > loaded.nr_types:
        most = max(info.types)
        print(f"{path} names types to {most}, the network tells 0 to {loaded.nr_types - 1}: check that it is its file.")
    return info


def describe(loaded: LoadedNetwork, recipe: TrainRecipe | None, path: str) -> str:
    """A line on the network, and the scale that it wants."""
    types = "no types" if loaded.nr_types is None else f"{loaded.nr_types} types"
    if recipe is None:
        return f"{path}: HoVer-Net '{loaded.mode}', {types}; give images at the scale it was trained at."
    scale = f"give images at {recipe.data.mpp:g} um/px"
    return f"{path}: HoVer-Net '{loaded.mode}', {types}, by recipe '{recipe.name}'; {scale}."


def finish_workers(settings: Mapping[str, Any], images: int) -> int:
    """How many processes post-process: as asked, or as many as cores, if there are images to keep them busy."""
    asked: int | None = settings["nr_post_proc_workers"]
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, images // 8, 8)  # each takes seconds to start, which a few images are not worth


def counted(images: int) -> str:
    """'1 image', '2 images'."""
    return f"{images} image{'' if images == 1 else 's'}"


def report(summary: Summary, tiles: TileFiles, output_dir: Path) -> None:
    """Print what was done, and on stderr what was not."""
    done, rate = f"{summary.done} of {counted(len(tiles.images))}", summary.done / max(summary.seconds, 1e-9)
    print(f"{done}, {summary.nuclei} nuclei, {summary.seconds:.1f} s ({rate:.2f} images/s)")
    if summary.done:
        print(f"Look at {output_dir / 'overlay'}")
    if tiles.left_out:
        print("Not images, and left out:", *tiles.left_out, sep="\n  ", file=sys.stderr)
    if summary.failures:
        print(
            f"{counted(len(summary.failures))} could not be processed:", *summary.failures, sep="\n  ", file=sys.stderr
        )


if __name__ == "__main__":
    exit_with(main)

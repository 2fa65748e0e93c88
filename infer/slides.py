"""Many slides, one after the other: what is finished is skipped, what fails is named, the others go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from dataloader.images import IMAGE_SUFFIXES
from dataloader.readers.faults import is_remote
from dataloader.slides import SLIDE_SUFFIXES
from hovernet_cyclic.core.errors import HoverNetCyclicError, SlideError
from hovernet_cyclic.core.types import SlideSegmenter
from infer.folder_lock import FolderLock
from infer.journal import Journal
from infer.slide_estimate import Estimate, duration, estimate, memory_bytes, size, time_network
from infer.slide_finish import SlideFinisher
from infer.slide_outputs import SlideFolder
from infer.slide_plan import MARGIN, SlidePlan, SlideRequest, plan_slide
from infer.wsi import Progress, SlideRun
from models.hovernet.post_proc import SMALLEST_AREA


class SlideFile(NamedTuple):
    """path: file, folder or address. name: of its results."""

    path: str
    name: str


class SlideFiles(NamedTuple):
    """What --input_dir names. left_out: other files there, hidden ones not counted."""

    slides: list[SlideFile]
    left_out: list[Path]


@dataclass(frozen=True)
class SlideSettings:
    """How slides are segmented. network: plain values that name the weights and their arithmetic. cache: for journals.

    nr_types: 0 for none. readers, workers: see SlideRun. patch_bytes: memory of a patch in the network, at most.
    views: of how many the network's answer is the mean. smallest: px of a nucleus, see post_proc.segment.
    """

    request: SlideRequest
    outputs: SlideFolder
    cache: Path
    network: Mapping[str, Any]
    nr_types: int = 0
    readers: int = 1
    workers: int = 0
    patch_bytes: float = 0.0
    views: int = 1
    quiet: bool = False
    smallest: int = SMALLEST_AREA


class SlideResult(NamedTuple):
    """state: 'done', 'skipped' (finished before), 'incomplete' (parts could not be read) or 'failed'.

    fault: a sentence, for the last two.
    """

    name: str
    state: str
    nuclei: int = 0
    mm2: float = 0.0
    seconds: float = 0.0
    fault: str | None = None


def list_slides(input_dir: str) -> SlideFiles:
    """The slides of a folder, or the one file, OME-Zarr group or address that is named. Raises SlideError."""
    given = Path(input_dir)
    if is_remote(input_dir) or _is_slide(given):
        return SlideFiles([SlideFile(input_dir, _name(input_dir))], [])
    if given.is_file():
        raise SlideError(f"{given} is no slide: give one of {', '.join(SLIDE_SUFFIXES)}, or a folder of them.")
    if not given.is_dir():
        raise SlideError(f"{given} does not exist: give a folder of slides, or one slide.")
    inside = sorted(path for path in given.iterdir() if not path.name.startswith("."))
    slides = [SlideFile(str(path), _name(str(path))) for path in inside if _is_slide(path) or _is_lost(path)]
    if not slides:
        raise SlideError(f"The folder {given} holds no slide: put {', '.join(SLIDE_SUFFIXES[:6])} or others there.")
    seen: dict[str, str] = {}
    for path, name in slides:
        if seen.setdefault(name.lower(), path) != path:
            raise SlideError(f"{seen[name.lower()]} and {path} would get results of the same name: rename one of them.")
    taken = {path for path, _ in slides}
    return SlideFiles(slides, [path for path in inside if path.is_file() and str(path) not in taken])


def _is_slide(path: Path) -> bool:
    return path.suffix.lower() in SLIDE_SUFFIXES and (
        path.is_file() or (path.suffix.lower() == ".zarr" and path.is_dir())
    )


def _is_lost(path: Path) -> bool:
    """Whether it is a link to a slide that is not there: opening it says so."""
    return path.suffix.lower() in SLIDE_SUFFIXES and path.is_symlink() and not path.exists()


def _name(path: str) -> str:
    name = path.rstrip("/").rpartition("/")[2]
    for suffix in (*(f".ome{end}" for end in (*IMAGE_SUFFIXES, ".zarr")), *SLIDE_SUFFIXES):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def segment_slides(
    slides: Sequence[SlideFile], segmenters: Sequence[SlideSegmenter], settings: SlideSettings
) -> Iterator[SlideResult]:
    """Segment slides and write their files, one SlideResult each as it ends. Raises RecipeError where another run holds
    the folder of results, or it cannot be written to.
    """
    with FolderLock(settings.outputs.root), FolderLock(settings.cache):
        for slide in slides:
            begin = time.monotonic()
            try:
                result = _segment(slide, segmenters, settings)
            except Exception as error:  # one slide's fault, whatever it is, must not end the others
                result = SlideResult(slide.name, "failed", fault=slide_fault(slide.path, error))
            yield result._replace(seconds=time.monotonic() - begin)


def slide_fault(path: str, error: BaseException) -> str:
    """Why there is no result for a slide, in one sentence that names it."""
    if isinstance(error, HoverNetCyclicError):
        return str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"{path}: memory is too small for it: give a smaller --tile_shape or --batch_size."
    if isinstance(error, OSError):
        return (
            f"{path}: its results cannot be written ({error.strerror or error}): make room or check the folder, and "
            "run again: what is done is kept."
        )
    return f"{path}: it failed in an unexpected way ({type(error).__name__}: {error}): please report this."


def _segment(slide: SlideFile, segmenters: Sequence[SlideSegmenter], settings: SlideSettings) -> SlideResult:
    plan = plan_slide(slide.path, slide.name, settings.request, segmenters[0].cell)
    try:
        return _segment_plan(plan, segmenters, settings)
    finally:
        plan.reader.close()


def _segment_plan(plan: SlidePlan, segmenters: Sequence[SlideSegmenter], settings: SlideSettings) -> SlideResult:
    identity = {**plan.identity, "network": dict(settings.network), "types": _named_types(settings)}
    before = settings.outputs.info(plan.name)
    if before is not None and before.get("identity") == _plain(identity) and settings.outputs.holds_all(plan):
        return _result(plan, before, "skipped")
    for sentence in plan.notices:
        print(sentence, file=sys.stderr)
    journal = Journal(settings.cache / plan.name, {**identity, "grid": _grid(plan)})
    if journal.started_over:
        print(
            f"{plan.name}: an unfinished run with other settings is given up, and the slide begun anew.",
            file=sys.stderr,
        )
    finisher = SlideFinisher(plan.view.shape, plan.view.mpp, settings.nr_types, plan.region, settings.smallest)
    with tqdm(total=len(plan.wanted), unit="tile", disable=settings.quiet, dynamic_ncols=True, desc=plan.name) as bar:
        run = SlideRun(plan, segmenters, finisher, journal, settings.readers, settings.workers)
        run = replace(run, told=lambda progress: _show(bar, progress))
        try:
            run.segment()
            info = settings.outputs.write(plan, journal, identity)
        except BaseException:
            journal.close()
            raise
    journal.remove()
    return _result(plan, info, "done")


def _grid(plan: SlidePlan) -> list[Any]:
    """What decides which records there are."""
    first = plan.tiles[0].tile
    return [list(first.window), list(first.own), MARGIN]


def _named_types(settings: SlideSettings) -> dict[str, Any]:
    return {str(type_id): [one.name, list(one.colour)] for type_id, one in settings.outputs.types.types.items()}


def _plain(values: Mapping[str, Any]) -> Any:
    import json

    return json.loads(json.dumps(values))


def _show(bar: Any, progress: Progress) -> None:
    bar.set_postfix_str(f"{progress.nuclei} nuclei", refresh=False)
    if bar.n == 0 and progress.done > 1:
        bar.initial = progress.done - 1  # done by an earlier run: not of this run's speed
        bar.n = progress.done - 1
    bar.update(progress.done - bar.n)


def _result(plan: SlidePlan, info: Mapping[str, Any], state: str) -> SlideResult:
    unreadable = info["unreadable"]
    fault = None
    if unreadable:
        shown = "; ".join(",".join(map(str, box)) for box in unreadable[:5])
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        fault = f"{plan.reader.path}: regions that cannot be read were left out (x,y,width,height: {shown}{more})."
        state = "incomplete"
    return SlideResult(plan.name, state, info["nuclei"], info["tissue_mm2"], fault=fault)


def table(results: Sequence[SlideResult]) -> str:
    """The closing table, a line a slide."""
    width = max([5, *(len(result.name) for result in results)])
    lines = [f"{'slide':<{width}}  {'state':<10}  {'nuclei':>9}  {'tissue mm2':>10}  {'nuclei/mm2':>10}  {'time':>7}"]
    for result in results:
        density = f"{result.nuclei / result.mm2:.0f}" if result.mm2 else "-"
        lines.append(
            f"{result.name:<{width}}  {result.state:<10}  {result.nuclei:>9}  {result.mm2:>10.3f}  {density:>10}  "
            f"{duration(result.seconds):>7}"
        )
    return "\n".join(lines)


def segment_and_report(
    slides: Sequence[SlideFile], segmenters: Sequence[SlideSegmenter], settings: SlideSettings
) -> list[str]:
    """Segment slides, say what fails as it fails, and print a table at the end. Returns the faults."""
    results = []
    for result in segment_slides(slides, segmenters, settings):
        results.append(result)
        if result.fault:
            print(result.fault, file=sys.stderr)
    print(table(results))
    return [result.fault for result in results if result.fault]


def dry_run(slides: Sequence[SlideFile], segmenters: Sequence[SlideSegmenter], settings: SlideSettings) -> list[str]:
    """Print what would be done of each slide; returns the faults of those that cannot be used."""
    rate = time_network(segmenters)
    faults: list[str] = []
    total = Estimate(0, 0.0, 0, 0.0)
    for slide in slides:
        try:
            plan = plan_slide(slide.path, slide.name, settings.request, segmenters[0].cell)
        except HoverNetCyclicError as error:
            faults.append(str(error))
            continue
        one = estimate(plan, rate)
        plan.reader.close()
        total = total.plus(one)
        print(_described(plan, one))
        for sentence in plan.notices:
            print(sentence, file=sys.stderr)
    needed = memory_bytes(
        settings.request.window, settings.nr_types, settings.workers, settings.patch_bytes, settings.views
    )
    print(
        f"Altogether: {total.windows} windows of {settings.request.window} px, {total.mm2:.1f} mm2, about "
        f"{duration(total.seconds)}, {size(total.disk)} on disk, {size(needed)} of memory."
    )
    return faults


def _described(plan: SlidePlan, one: Estimate) -> str:
    height, width = plan.reader.level_shapes[0]
    share = "the whole slide" if plan.tissue is None else f"tissue {plan.tissue.share:.0%}"
    how = "as it is" if plan.view.factors == (1.0, 1.0) else f"resampled to {plan.view.mpp[0]:g} um/px"
    return (
        f"{plan.name}: {width} x {height} px at {plan.scale.mpp[0]:.4g} um/px (from {plan.scale.source}), level "
        f"{plan.view.level} {how}, {share} ({one.mm2:.1f} mm2), {one.windows} windows, about {duration(one.seconds)}, "
        f"{size(one.disk)} on disk"
    )

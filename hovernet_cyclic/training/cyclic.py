"""Cyclic learning in running order (Zhou et al., IEEE TMI 2023): classifier, pseudo masks, HoVer-Net, and round again.

Nothing here can open a drawn mask: a `TileSource` has none to give. A mixed run hands them in (see mixed.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from dataloader.augs import LabelledTile
from dataloader.classifier_loader import PatchSampler, split_by_group
from dataloader.copy_paste import cut_out
from dataloader.pseudo_store import fingerprint, load_pseudo_mask, save_pseudo_masks
from dataloader.train_loader import TileSampler
from hovernet_cyclic.core.errors import DatasetError, TrainingError
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import ActivationMap, ImageTile, PseudoMask, Segmenter, TileSource
from hovernet_cyclic.training.back_end import train_back_end
from hovernet_cyclic.training.devices import seed_everything
from hovernet_cyclic.training.front_end import patch_accuracy, read_activation, train_front_end
from hovernet_cyclic.training.gallery import write_gallery
from hovernet_cyclic.training.guards import collapse_of, count_masks
from hovernet_cyclic.training.history import count_data
from hovernet_cyclic.training.keeper import Keeper
from hovernet_cyclic.training.networks import Networks
from hovernet_cyclic.training.patch_score import PatchScore, score_on_patches
from hovernet_cyclic.training.position import Position
from hovernet_cyclic.training.pseudo_masks import TileCandidates, make_pseudo_masks, surest, tile_candidates
from hovernet_cyclic.training.report import report_run
from hovernet_cyclic.training.run_dir import RunDir, Stage, StageLog
from hovernet_cyclic.training.signals import HeedfulSegmenter, StopRequest, stop_request
from infer.views import MeanOfViews
from models.devices import Device
from models.encoder import copy_encoder
from models.hovernet.net_desc import input_shape
from models.ranks import ALONE, Ranks

TILES_PER_PROCESS = 8  # fewer are cut sooner than another process starts


@dataclass
class Work:
    """What one run carries from stage to stage. drawn: of a mixed run, tile_id -> tile with its drawn masks."""

    recipe: TrainRecipe
    source: TileSource
    run: RunDir
    device: Device
    log: StageLog
    keeper: Keeper
    train_patches: list[int]
    held_patches: list[int]
    drawn: Mapping[str, LabelledTile] = field(default_factory=dict)
    ranks: Ranks = ALONE
    maps: list[ActivationMap] = field(default_factory=list)

    @property
    def networks(self) -> Networks:
        """Classifier, student and teacher."""
        return self.keeper.networks

    @property
    def tiles(self) -> Iterator[ImageTile]:
        """The training tiles, read one at a time."""
        return (self.source.read_tile(i) for i in range(len(self.source.tile_ids)))

    @property
    def own_tiles(self) -> Iterator[ImageTile]:
        """This process's share of them."""
        return (self.source.read_tile(i) for i in self.ranks.own(range(len(self.source.tile_ids))))

    @property
    def stop(self) -> StopRequest:
        """What is asked of the run between two tiles; several processes stop together, and so at steps alone."""
        return self.keeper.stop if self.ranks.count == 1 else StopRequest()

    @property
    def activations(self) -> list[ActivationMap]:
        """Activation maps of this process's tiles, as the front end of the cycle left the classifier; read once."""
        if not self.maps:
            own = len(self.ranks.own(range(len(self.source.tile_ids))))
            name = f"cycle {self.keeper.position.cycle} evidence"
            tiles = self.log.steps(self.own_tiles, own, name, images=self.ranks.count)
            self.maps = [self._activation(tile) for tile in tiles]
        return self.maps

    def _activation(self, tile: ImageTile) -> ActivationMap:
        self.stop.heed()
        return read_activation(self.networks.classifier, tile, self.recipe.pseudo_masks.cam, self.device)

    def stage(self, name: str) -> Stage:
        """What the training loop of a stage is told. name: such as 'cycle 1 back end'."""
        return replace(self.log.stage(name, self.device), keeper=self.keeper)

    def segmenter(self) -> Segmenter:
        """The teacher as it stands, behind a lattice of patches; it is asked nothing more once the run is to stop."""
        return HeedfulSegmenter(self.networks.segmenter(self.recipe, self.device), self.stop)


def run_cycles(
    recipe: TrainRecipe,
    source: TileSource,
    run: RunDir,
    device: Device,
    quiet: bool = False,
    drawn: Mapping[str, LabelledTile] | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Train by the recipe and return the checkpoint of the best cycle. Goes on from the run's state where there is one.

    drawn: tile_id -> tile, of tiles whose drawn masks the back end learns in place of pseudo masks. The run's folder is
    left as `run_dir` describes it. ranks: all of them call this together, and see the same folder. Asked to stop (see
    signals.py), it saves its state and raises what was asked. Raises TrainingError where the first cycle fails.
    """
    seed_everything(recipe.seed)
    train, held = split_by_group(source, recipe.data.valid_fraction, recipe.seed)
    log = StageLog(run, quiet, ranks)
    with stop_request().deferred():
        keeper = Keeper.open(run, recipe, device, log, ranks)
        work = Work(recipe, source, run, device, log, keeper, train, held, drawn or {}, ranks)
        match_pseudo_masks(work)
        keeper.clear_traces()
        log.note("data", **count_data(source, train, held, work.drawn))
        log.open(run, device)
        while keeper.position.cycle <= recipe.num_cycles:
            run_cycle(work, keeper.position.cycle)
            if ranks.leads:
                log.flush()
                report_run(run, log.say)
        log.close()
        if ranks.leads:
            keeper.networks.save_net(run.net, recipe)
            report_run(run, log.say)
        ranks.wait()
    return run.net


def check_source(recipe: TrainRecipe, source: TileSource, ranks: Ranks = ALONE) -> None:
    """Read each tile and patch once, so that a bad image is named now and not hours later. Raises DatasetError."""
    split_by_group(source, recipe.data.valid_fraction, recipe.seed)
    for i in ranks.own(range(len(source.tile_ids))):
        source.read_tile(i)
    for i in ranks.own(range(len(source.patch_labels))):
        source.read_patch(i)


def match_pseudo_masks(work: Work) -> None:
    """Where the stored pseudo masks are not those that the back end was learning from, go back to making them.

    They come out the same.
    """
    keeper, stored = work.keeper, work.run.pseudo_masks
    position = keeper.position
    if position.stage not in ("back_end", "judge"):
        return
    try:
        found = fingerprint(load_pseudo_mask(stored(position.cycle), tile_id) for tile_id in work.source.tile_ids)
    except DatasetError:
        found = ""
    if found != position.masks:
        work.log.say(f"{stored(position.cycle)}: damaged, or not of this state of the run: they are made again.")
        keeper.redo_back_end(Position(position.cycle, "pseudo_masks"), work.device)


def run_cycle(work: Work, cycle: int) -> None:
    """One turn: front end, pseudo masks, back end, and the judgement whether it helped. Begins where the run stands."""
    keeper, networks = work.keeper, work.networks
    work.maps = []
    if keeper.position.stage == "front_end":
        teach_classifier(work, cycle)
        keeper.arrive(Position(cycle, "pseudo_masks"))
    for part in range(keeper.position.part, work.recipe.back_end.widen_rounds + 1):
        if keeper.position.stage == "pseudo_masks":
            if part == 0 and hands_to_student(work.recipe, cycle):
                copy_encoder(networks.classifier, networks.student)
            label_tiles(work, cycle, work.activations, with_teacher=cycle > 1 or part > 0)
            masks = stored_masks(work, cycle)
            if collapse := collapse_of(count_masks(masks, work.recipe.data.mpp), nuclei_before(work, cycle)):
                return give_up_cycle(work, cycle, collapse)
            keeper.arrive(Position(cycle, "back_end", part, masks=fingerprint(masks)))
        teach_student(work, cycle, part)
        keeper.arrive(keeper.position.after_part(work.recipe.back_end.widen_rounds + 1))
    show_cycle(work, cycle, work.activations)
    judge_cycle(work, cycle)


def hands_to_student(recipe: TrainRecipe, cycle: int) -> bool:
    """Whether the student is handed the classifier's encoder in a cycle (1, 2, ...)."""
    return recipe.to_student == "each" or (recipe.to_student == "first" and cycle == 1)


def teach_classifier(work: Work, cycle: int) -> None:
    """The front end of one cycle."""
    settings = work.recipe.front_end
    steps = settings.steps_in(cycle)
    sampler = PatchSampler(work.source, work.train_patches, settings.batch_size, work.recipe.seed)
    classifier = work.networks.classifier
    train_front_end(classifier, sampler, steps, settings, work.stage(f"cycle {cycle} front end"))
    work.log.begin(f"cycle {cycle} held-out patches")
    accuracy = patch_accuracy(classifier, work.source, work.held_patches, work.device, work.ranks)
    work.log.note("patches", cycle=cycle, accuracy=accuracy)
    if not np.isnan(accuracy):
        work.log.say(f"cycle {cycle}: the classifier is right on {accuracy:.1%} of the held-out patches (balanced)")


def label_tiles(work: Work, cycle: int, activations: list[ActivationMap], with_teacher: bool) -> None:
    """Make the cycle's pseudo masks, or widen them once a teacher can speak too, and store them.

    activations: of this process's own tiles, which it labels.
    """
    recipe = work.recipe
    segmenter = None
    if with_teacher:
        segmenter = MeanOfViews(work.networks.segmenter(recipe, work.device), recipe.pseudo_masks.teacher_views)
    jobs = (
        delayed(tile_candidates)(
            tile,
            activation,
            segmenter.raw_maps(tile.image) if segmenter else None,
            recipe,
        )
        for tile, activation in zip(work.own_tiles, activations, strict=True)
    )
    processes = min(work.ranks.cores, 1 + len(activations) // TILES_PER_PROCESS)
    cut = in_processes(jobs, processes, work.stop)
    found = list(work.log.steps(cut, len(activations), f"cycle {cycle} pseudo masks", images=work.ranks.count))
    trust_above = recipe.pseudo_masks.trust_later if with_teacher else recipe.pseudo_masks.trust_above
    masks = make_pseudo_masks(found, cycle, recipe.data.mpp, trust_above, recipe.pseudo_masks, work.ranks)
    save_pseudo_masks(work.run.pseudo_masks(cycle), masks)
    counts = work.ranks.gather([(len(mask.confidence), float(mask.trusted.mean())) for mask in masks])
    nuclei, trusted = sum(count for count, _ in counts), float(np.mean([share for _, share in counts]))
    work.log.note("labels", cycle=cycle, tiles=len(counts), nuclei=nuclei, taught=trusted)
    work.log.say(f"cycle {cycle}: {nuclei} trusted nuclei on {len(counts)} tiles, {trusted:.0%} of the pixels taught")


def stored_masks(work: Work, cycle: int) -> list[PseudoMask]:
    """The cycle's pseudo masks of all tiles, in their order."""
    stored = work.run.pseudo_masks(cycle)
    return [load_pseudo_mask(stored, tile_id) for tile_id in work.source.tile_ids]


def in_processes(jobs: Iterable[Any], processes: int, stop: StopRequest) -> Iterator[TileCandidates]:
    """What the jobs answer, in order. Raises what `stop` was asked between two.

    Raises TrainingError where a process was killed.
    """
    try:
        for answer in Parallel(processes, pre_dispatch=2 * processes, return_as="generator")(jobs):
            stop.heed()
            yield answer
    except BrokenProcessPool as error:
        stop.heed_within(2.0)  # a cluster ends the processes of a job one after the other
        raise TrainingError(
            "A process that makes pseudo masks was killed, as a machine does that runs out of memory: free some, and "
            "give --resume to go on."
        ) from error


def nuclei_before(work: Work, cycle: int) -> int | None:
    """Nuclei in the pseudo masks of the last cycle before `cycle` that was kept; None where that is not known."""
    counts = [
        row.get("nuclei") for row in work.run.read_json("cycles.json", []) if row["cycle"] < cycle and row["kept"]
    ]
    return counts[-1] if counts else None


def give_up_cycle(work: Work, cycle: int, collapse: str) -> None:
    """Go back to the best cycle: there is nothing to learn from. Raises TrainingError where there is none yet."""
    show_cycle(work, cycle, work.activations)
    if work.networks.best is None:
        raise TrainingError(
            f"{work.run.cycle(cycle) / 'gallery.png'}: the first pseudo masks are nothing to learn from ({collapse}): "
            "look at them there, and check data.mpp and the labels of the patches (--view=train shows some)."
        )
    work.networks.roll_back(cycle)
    best = work.networks.best_cycle
    write_row(
        work, PatchScore.unknown(), cycle, False, f"rolled back to cycle {best}: its pseudo masks collapsed, {collapse}"
    )


def teach_student(work: Work, cycle: int, part: int) -> None:
    """One of the equal parts of a cycle's back end."""
    recipe, settings = work.recipe, work.recipe.back_end
    all_steps = settings.steps_in(cycle)
    length = len(all_steps) // (settings.widen_rounds + 1)
    begin = all_steps.start + part * length
    masks = {mask.tile_id: mask for mask in stored_masks(work, cycle)}
    shapes = (input_shape(recipe.net.mode, settings.patch_shape), settings.patch_shape)
    taught = [(tile, masks[tile.tile_id]) for tile in work.tiles if tile.tile_id not in work.drawn]
    tiles = [LabelledTile(tile.image, mask.inst_map, mask.trusted) for tile, mask in taught]
    cutouts = [cut_out(tile.image, mask.inst_map, surest(mask, settings.paste_above)) for tile, mask in taught]
    negatives = [i for i in work.train_patches if work.source.patch_labels[i, 0] == 0]
    drawn = list(work.drawn.values())
    sampler = TileSampler(tiles, (work.source, negatives), shapes, settings, recipe.seed, drawn, cutouts)
    networks = work.networks
    stage = work.stage(f"cycle {cycle} back end {part + 1}/{settings.widen_rounds + 1}")
    train_back_end(networks.student, networks.teacher, sampler, range(begin, begin + length), settings, stage)


def show_cycle(work: Work, cycle: int, activations: list[ActivationMap]) -> None:
    """A picture of the cycle: image, evidence, pseudo mask and what the teacher sees, for a few tiles."""
    activations = work.ranks.gather_to_lead(activations)
    if not work.ranks.leads:
        return
    work.log.begin(f"cycle {cycle} pictures")
    gallery = write_gallery(
        work.run.cycle(cycle) / "gallery.png",
        work.tiles,
        activations,
        stored_masks(work, cycle),
        work.segmenter(),
        work.recipe.smallest_area,
    )
    work.run.write_json(f"cycle_{cycle}/gallery.json", gallery.rows)
    work.log.picture(cycle, gallery.page)


def judge_cycle(work: Work, cycle: int) -> None:
    """Keep the cycle unless it does clearly worse on held-out patches than the best so far; else go back.

    If it is kept, the classifier begins the next one with the teacher's encoder.
    """
    networks, recipe = work.networks, work.recipe
    work.log.begin(f"cycle {cycle} score")
    score = score_on_patches(work.segmenter(), work.source, work.held_patches, recipe, work.ranks)
    if work.ranks.leads:
        networks.save_net(work.run.cycle(cycle) / "net.tar", recipe)
    if recipe.to_classifier:
        copy_encoder(networks.teacher.module, networks.classifier)
    kept, reason = networks.keep_or_roll_back(cycle, score.surplus)
    write_row(work, score, cycle, kept, reason)


def write_row(work: Work, score: PatchScore, cycle: int, kept: bool, reason: str) -> None:
    """Note in cycles.json what became of a cycle, say it, and let the next one begin."""
    if work.ranks.leads:
        rows = [row for row in work.run.read_json("cycles.json", []) if row["cycle"] < cycle]
        row = {
            "cycle": cycle,
            **score._asdict(),
            "surplus": score.surplus,
            "nuclei": sum(len(mask.confidence) for mask in stored_masks(work, cycle)),
            "kept": kept,
            "reason": reason,
        }
        work.run.write_json("cycles.json", [*rows, {**row, "seconds": round(work.keeper.cycle_seconds, 1)}])
        work.log.scores(cycle, row)
    work.log.say(f"cycle {cycle}: {reason}")
    work.keeper.arrive(Position(cycle + 1))

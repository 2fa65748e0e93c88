"""Cyclic learning in running order (Zhou et al., IEEE TMI 2023): classifier, pseudo masks, HoVer-Net, and round again.

Nothing here can open a drawn mask: a `TileSource` has none to give. A mixed run hands them in (see mixed.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from joblib import Parallel, cpu_count, delayed

from dataloader.augs import LabelledTile
from dataloader.classifier_loader import PatchSampler, split_by_group
from dataloader.copy_paste import cut_out
from dataloader.pseudo_store import load_pseudo_mask, save_pseudo_masks
from dataloader.train_loader import TileSampler
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.core.types import ActivationMap, ImageTile, TileSource
from hovernet_cyclic.training.back_end import train_back_end
from hovernet_cyclic.training.devices import seed_everything
from hovernet_cyclic.training.front_end import patch_accuracy, read_activation, train_front_end
from hovernet_cyclic.training.gallery import write_gallery
from hovernet_cyclic.training.history import count_data
from hovernet_cyclic.training.networks import Networks
from hovernet_cyclic.training.patch_score import score_on_patches
from hovernet_cyclic.training.pseudo_masks import TileCandidates, make_pseudo_masks, surest, tile_candidates
from hovernet_cyclic.training.report import report_run
from hovernet_cyclic.training.run_dir import RunDir, StageLog
from infer.base import NetworkSegmenter
from models.devices import Device
from models.encoder import copy_encoder
from models.hovernet.net_desc import input_shape

TILES_PER_PROCESS = 8  # fewer are cut sooner than another process starts


@dataclass
class Work:
    """What one run carries from stage to stage. drawn: of a mixed run, tile_id -> tile with its drawn masks."""

    recipe: TrainRecipe
    source: TileSource
    run: RunDir
    device: Device
    log: StageLog
    networks: Networks
    train_patches: list[int]
    held_patches: list[int]
    drawn: Mapping[str, LabelledTile] = field(default_factory=dict)

    @property
    def tiles(self) -> Iterator[ImageTile]:
        """The training tiles, read one at a time."""
        return (self.source.read_tile(i) for i in range(len(self.source.tile_ids)))

    def segmenter(self) -> NetworkSegmenter:
        """The teacher as it stands, behind a lattice of patches."""
        return self.networks.segmenter(self.recipe, self.device)


def run_cycles(
    recipe: TrainRecipe,
    source: TileSource,
    run: RunDir,
    device: Device,
    quiet: bool = False,
    drawn: Mapping[str, LabelledTile] | None = None,
) -> Path:
    """Train by the recipe and return the checkpoint of the best cycle. Goes on from `run.state` where there is one.

    drawn: tile_id -> tile, of tiles whose drawn masks the back end learns in place of pseudo masks. The run's folder is
    left as `run_dir` describes it.
    """
    seed_everything(recipe.seed)
    train, held = split_by_group(source, recipe.data.valid_fraction, recipe.seed)
    networks = Networks.restore(run.state, recipe, device) if run.state.exists() else Networks.fresh(recipe, device)
    work = Work(recipe, source, run, device, StageLog(run, quiet), networks, train, held, drawn or {})
    work.log.note("data", **count_data(source, train, held, work.drawn))
    work.log.open(run, device)
    for cycle in range(networks.cycles_done + 1, recipe.num_cycles + 1):
        run_cycle(work, cycle)
        work.log.flush()
        report_run(run, work.log.say)
    work.log.close()
    networks.save_net(run.net, recipe)
    report_run(run, work.log.say)
    return run.net


def check_source(recipe: TrainRecipe, source: TileSource) -> None:
    """Read each tile and patch once, so that a bad image is named now and not hours later. Raises DatasetError."""
    split_by_group(source, recipe.data.valid_fraction, recipe.seed)
    for i in range(len(source.tile_ids)):
        source.read_tile(i)
    for i in range(len(source.patch_labels)):
        source.read_patch(i)


def run_cycle(work: Work, cycle: int) -> None:
    """One turn: front end, pseudo masks, back end, the encoder handed back, and the judgement whether it helped."""
    began = time.monotonic()
    networks = work.networks
    teach_classifier(work, cycle)
    method = work.recipe.pseudo_masks.cam
    tiles = work.log.steps(work.tiles, len(work.source.tile_ids), f"cycle {cycle} evidence", images=1)
    activations = [read_activation(networks.classifier, tile, method, work.device) for tile in tiles]
    copy_encoder(networks.classifier, networks.student)
    for part in range(work.recipe.back_end.widen_rounds + 1):
        label_tiles(work, cycle, activations, with_teacher=cycle > 1 or part > 0)
        teach_student(work, cycle, part)
    copy_encoder(networks.teacher.module, networks.classifier)
    show_cycle(work, cycle, activations)
    judge_cycle(work, cycle, began)


def teach_classifier(work: Work, cycle: int) -> None:
    """The front end of one cycle."""
    settings = work.recipe.front_end
    begin = 0 if cycle == 1 else settings.steps_first + (cycle - 2) * settings.steps_later
    steps = range(begin, begin + (settings.steps_first if cycle == 1 else settings.steps_later))
    sampler = PatchSampler(work.source, work.train_patches, settings.batch_size, work.recipe.seed)
    classifier = work.networks.classifier
    train_front_end(classifier, sampler, steps, settings, work.log.stage(f"cycle {cycle} front end", work.device))
    work.log.begin(f"cycle {cycle} held-out patches")
    accuracy = patch_accuracy(classifier, work.source, work.held_patches, work.device)
    work.log.note("patches", cycle=cycle, accuracy=accuracy)
    if not np.isnan(accuracy):
        work.log.say(f"cycle {cycle}: the classifier is right on {accuracy:.1%} of the held-out patches (balanced)")


def label_tiles(work: Work, cycle: int, activations: list[ActivationMap], with_teacher: bool) -> None:
    """Make the cycle's pseudo masks, or widen them once a teacher can speak too, and store them."""
    recipe = work.recipe
    segmenter = work.segmenter() if with_teacher else None

    jobs = (
        delayed(tile_candidates)(
            tile,
            activation,
            segmenter.raw_maps(tile.image) if segmenter else None,
            recipe,
        )
        for tile, activation in zip(work.tiles, activations, strict=True)
    )
    processes = min(cpu_count(), 1 + len(activations) // TILES_PER_PROCESS)
    cut = Parallel(processes, pre_dispatch=2 * processes, return_as="generator")(jobs)
    found: list[TileCandidates] = list(work.log.steps(cut, len(activations), f"cycle {cycle} pseudo masks", images=1))
    trust_above = recipe.pseudo_masks.trust_later if with_teacher else recipe.pseudo_masks.trust_above
    masks = make_pseudo_masks(found, cycle, recipe.data.mpp, trust_above, recipe.pseudo_masks)
    save_pseudo_masks(work.run.pseudo_masks(cycle), masks)
    nuclei = sum(len(mask.confidence) for mask in masks)
    trusted = float(np.mean([mask.trusted.mean() for mask in masks]))
    work.log.note("labels", cycle=cycle, tiles=len(masks), nuclei=nuclei, taught=trusted)
    work.log.say(f"cycle {cycle}: {nuclei} trusted nuclei on {len(masks)} tiles, {trusted:.0%} of the pixels taught")


def teach_student(work: Work, cycle: int, part: int) -> None:
    """One of the equal parts of a cycle's back end."""
    recipe, settings = work.recipe, work.recipe.back_end
    length = settings.steps // (settings.widen_rounds + 1)
    begin = (cycle - 1) * settings.steps + part * length
    stored = work.run.pseudo_masks(cycle)
    masks = {tile_id: load_pseudo_mask(stored, tile_id) for tile_id in work.source.tile_ids}
    shapes = (input_shape(recipe.net.mode, settings.patch_shape), settings.patch_shape)
    taught = [(tile, masks[tile.tile_id]) for tile in work.tiles if tile.tile_id not in work.drawn]
    tiles = [LabelledTile(tile.image, mask.inst_map, mask.trusted) for tile, mask in taught]
    cutouts = [cut_out(tile.image, mask.inst_map, surest(mask, settings.paste_above)) for tile, mask in taught]
    negatives = [i for i in work.train_patches if work.source.patch_labels[i, 0] == 0]
    drawn = list(work.drawn.values())
    sampler = TileSampler(tiles, (work.source, negatives), shapes, settings, recipe.seed, drawn, cutouts)
    networks = work.networks
    stage = work.log.stage(f"cycle {cycle} back end {part + 1}/{settings.widen_rounds + 1}", work.device)
    train_back_end(networks.student, networks.teacher, sampler, range(begin, begin + length), settings, stage)


def show_cycle(work: Work, cycle: int, activations: list[ActivationMap]) -> None:
    """A picture of the cycle: image, evidence, pseudo mask and what the teacher sees, for a few tiles."""
    work.log.begin(f"cycle {cycle} pictures")
    stored = work.run.pseudo_masks(cycle)
    masks = [load_pseudo_mask(stored, tile_id) for tile_id in work.source.tile_ids]
    gallery = write_gallery(
        work.run.cycle(cycle) / "gallery.png",
        work.tiles,
        activations,
        masks,
        work.segmenter(),
        work.recipe.smallest_area,
    )
    work.run.write_json(f"cycle_{cycle}/gallery.json", gallery.rows)
    work.log.picture(cycle, gallery.page)


def judge_cycle(work: Work, cycle: int, began: float) -> None:
    """Keep the cycle if it does no worse on held-out patches than the best so far, else go back to that one."""
    networks, recipe = work.networks, work.recipe
    work.log.begin(f"cycle {cycle} score")
    score = score_on_patches(work.segmenter(), work.source, work.held_patches, recipe)
    networks.save_net(work.run.cycle(cycle) / "net.tar", recipe)
    kept, reason = networks.keep_or_roll_back(cycle, score.surplus)
    rows = [row for row in work.run.read_json("cycles.json", []) if row["cycle"] < cycle]
    row = {"cycle": cycle, **score._asdict(), "surplus": score.surplus, "kept": kept, "reason": reason}
    work.run.write_json("cycles.json", [*rows, {**row, "seconds": round(time.monotonic() - began, 1)}])
    networks.save_state(work.run.state, recipe)
    work.log.scores(cycle, row)
    work.log.say(f"cycle {cycle}: {reason}")

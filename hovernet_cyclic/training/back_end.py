"""The back end: HoVer-Net learns from the pixels that are trusted; its average over time is the network that counts.

The student is trained; the teacher is its exponential moving average (mean teacher: Tarvainen & Valpola, NeurIPS
2017). Pixels that no one vouches for teach nothing, or agreement between the two where the recipe gives it a weight.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from dataloader.train_loader import TileBatch, TileSampler
from hovernet_cyclic.core.settings import BackEndSettings
from hovernet_cyclic.core.types import HoVerTargets
from hovernet_cyclic.training.loop import Lesson, teach
from hovernet_cyclic.training.run_dir import Stage
from models.devices import Device
from models.ema import EmaTeacher
from models.hovernet.losses import bce, consistency, dice, mse, msge
from models.hovernet.net_desc import HoVerNet, HoVerOutput
from models.ranks import ALONE, Ranks


def train_back_end(
    student: HoVerNet,
    teacher: EmaTeacher[HoVerNet],
    sampler: TileSampler,
    steps: range,
    settings: BackEndSettings,
    stage: Stage,
) -> None:
    """Train `student` in place for `steps` (numbers of the whole run), and let `teacher` follow."""
    lesson = Lesson(
        curves="back_end",
        network=student,
        batch=partial(sampler.batch, rows=stage.ranks.own(range(settings.batch_size))),
        loss=lambda network, batch: back_end_loss(network, teacher, batch, settings, stage.device, stage.ranks),
        follow=lambda: teacher.update(student),
        settings=settings,
    )
    teach(lesson, steps, stage)


def back_end_loss(
    student: torch.nn.Module,
    teacher: EmaTeacher[HoVerNet],
    batch: TileBatch,
    settings: BackEndSettings,
    device: Device,
    ranks: Ranks = ALONE,
) -> dict[str, torch.Tensor]:
    """Scalars: 'np_bce', 'np_dice' on trusted pixels, 'hv_mse', 'hv_msge' on trusted nuclei; 'consistency' if weighed.

    student: a HoVerNet, or what stands for it in several processes, each with its rows of the batch. Where it tells
    types also 'tp_bce' and 'tp_dice', on pixels whose type is known (see `stack_types`).
    """
    np_map, hv_map, trusted = stack_targets(batch.targets, device)
    with device.autocast():
        output: HoVerOutput = student(device.images(batch.images))
    nuclei = trusted & (np_map > 0)
    outside = (trusted | settings.hv_everywhere) & (np_map == 0)
    parts = {
        "np_bce": bce(output.np, np_map, trusted, ranks),
        "np_dice": dice(output.np, np_map, trusted, ranks),
        "hv_mse": settings.hv_weight * mse(output.hv, hv_map, nuclei, ranks) + mse(output.hv, hv_map, outside, ranks),
        "hv_msge": settings.hv_weight * msge(output.hv, hv_map, np_map, trusted, ranks),
    }
    if output.tp is not None:
        type_map, known = stack_types(batch.targets, device)
        parts |= {"tp_bce": bce(output.tp, type_map, known, ranks), "tp_dice": dice(output.tp, type_map, known, ranks)}
    if settings.consistency_weight > 0:
        with torch.no_grad(), device.autocast():
            taught: HoVerOutput = teacher.module(device.images(batch.plain_images))
        agreement = consistency(output.np, taught.np, ~trusted, ranks)
        parts["consistency"] = settings.consistency_weight * agreement
    return parts


def stack_targets(targets: list[HoVerTargets], device: Device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """B targets -> np_map int64 (B, h, w), hv_map float32 (B, 2, h, w), trusted bool (B, h, w)."""
    np_map = device.tensor(np.stack([target.np_map for target in targets]))
    hv_map = device.tensor(np.stack([target.hv_map for target in targets])).permute(0, 3, 1, 2)
    trusted = device.tensor(np.stack([target.trusted for target in targets]))
    return np_map, hv_map, trusted


def stack_types(targets: list[HoVerTargets], device: Device) -> tuple[torch.Tensor, torch.Tensor]:
    """B targets -> type_map int64 (B, h, w), and where it is known, bool (B, h, w).

    It is on trusted pixels of targets with a type map, less nuclei that this map leaves at 0: they have some type.
    """
    type_maps = [np.zeros_like(one.np_map) if one.type_map is None else one.type_map for one in targets]
    known = [
        one.trusted & ((one.np_map == 0) | (types > 0)) & (one.type_map is not None)
        for one, types in zip(targets, type_maps, strict=True)
    ]
    return device.tensor(np.stack(type_maps)), device.tensor(np.stack(known))

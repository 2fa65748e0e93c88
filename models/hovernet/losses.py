"""What HoVer-Net's branches are charged, over trusted pixels only.

Source of the formulas: Graham et al., HoVer-Net, Medical Image Analysis 58, 2019, section 3.1.1, as computed by the
authors' code; where every pixel is trusted the values are theirs, with two exceptions. They clip probabilities at 1e-7
in `bce`, which leaves the worst pixels without a gradient. And in `msge` their TensorFlow code derives h along columns
and v along rows, as the paper has it and as we do; the PyTorch code exchanges the two kernels, by the order of axes of
`torch.meshgrid`. Where no pixel is trusted, a loss is 0 and has gradients (of 0).

Shapes: maps are (B, C, h, w), masks and classes (B, h, w). Every loss is a float32 scalar. Where several processes
hold rows of one batch (`ranks`), it is that of the whole batch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.ranks import ALONE, Ranks

DICE_SMOOTH = 1e-3


def bce(logits: Tensor, true: Tensor, trusted: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Cross-entropy, mean over trusted pixels: of two classes for np, of T for tp.

    logits: float (B, C, h, w). true: int64 (B, h, w) in [0, C). trusted: bool (B, h, w).
    """
    return _mean(F.cross_entropy(logits.float(), true, reduction="none"), trusted, ranks)


def dice(logits: Tensor, true: Tensor, trusted: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Sum over classes, background too, of 1 - (2 |P T| + s) / (|P| + |T| + s), counted over the whole batch.

    logits: float (B, C, h, w). true: int64 (B, h, w) in [0, C). trusted: bool (B, h, w).
    """
    weight = trusted[:, None].float()
    prob = logits.float().softmax(1) * weight
    truth = F.one_hot(true, logits.shape[1]).permute(0, 3, 1, 2) * weight
    common, both = ranks.sum(torch.stack([(prob * truth).sum((0, 2, 3)), (prob + truth).sum((0, 2, 3))])).unbind()
    return (1 - (2 * common + DICE_SMOOTH) / (both + DICE_SMOOTH)).sum()


def mse(hv: Tensor, true: Tensor, trusted: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean squared error of the hv maps. hv, true: float (B, 2, h, w). trusted: bool (B, h, w)."""
    return _mean((hv.float() - true).square().mean(1), trusted, ranks)


def msge(hv: Tensor, true: Tensor, np_map: Tensor, trusted: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean squared error of the hv maps' gradients, inside nuclei: of h along columns, of v along rows.

    hv, true: float (B, 2, h, w), h then v. np_map: (B, h, w), above 0 in nuclei. trusted: bool (B, h, w); a pixel
    that is not trusted is left out, though it is seen by the 5 x 5 gradient of its neighbours.
    """
    # The gradient is linear: that of the difference is the difference of the gradients.
    return _mean(hv_gradient(hv.float() - true).square().mean(1), trusted & (np_map > 0), ranks)


def hv_gradient(hv: Tensor) -> Tensor:
    """Float (B, 2, h, w) -> the same shape: h derived along columns and v along rows, 0 outside the map.

    The 5 x 5 kernel is x / (x^2 + y^2), with (x, y) the offset from the centre.
    """
    offset = torch.arange(-2.0, 3.0, device=hv.device)
    along, across = offset[None, :], offset[:, None]
    kernel = along / (along.square() + across.square() + 1e-15)
    return F.conv2d(hv, torch.stack([kernel, kernel.T])[:, None], padding=2, groups=2)


def consistency(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """Mean squared distance between two probability maps over `mask`; the teacher gets no gradient.

    student_logits, teacher_logits: float (B, C, h, w). mask: bool (B, h, w).
    """
    taught = teacher_logits.detach().float().softmax(1)
    return _mean((student_logits.float().softmax(1) - taught).square().mean(1), mask, ranks)


def _mean(values: Tensor, mask: Tensor, ranks: Ranks) -> Tensor:
    """Mean of values (B, h, w) where mask is True; 0 where it is True nowhere."""
    return ranks.ratio(torch.where(mask, values, 0.0).sum(), mask.sum())

"""One network in several processes: gradients averaged, BatchNorm over the batch of all.

BatchNorm over each process's own share would be another training: a share of four rows by eight processes is half a
row. So the statistics are those of the whole batch, as one process would find them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.ranks import Ranks


def train_together(network: nn.Module, ranks: Ranks) -> nn.Module:
    """What to call in place of `network` while it is trained: itself where `ranks` is one process.

    Its parameters and their names stay; its BatchNorms are changed in place, once, to those over all processes. All
    begin with the weights of rank 0.
    """
    if ranks.count == 1:
        return network
    device = next(network.parameters()).device
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        return DistributedDataParallel(network, device_ids=[device.index], forward_sync_buffers=False)
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d
    return DistributedDataParallel(network, forward_sync_buffers=False)


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training are those of all processes together. (torch's own knows GPUs alone.)"""

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, C, H, W) -> the same shape and dtype."""
        self._check_input_dim(x)
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None, "made with its defaults"
        assert self.num_batches_tracked is not None and self.momentum is not None, "made with its defaults"
        mean, var, count = _statistics(x)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        normalised: Tensor = _Normalised.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, mean, var + self.eps, count
        )
        return normalised


@torch.no_grad()
def _statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and (biased) variance, (C,) of `_exact`, of the pixels of all processes, and how many there are."""
    var, mean = (values.double() for values in torch.var_mean(_exact(x), (0, 2, 3), correction=0))
    count = x.numel() / x.shape[1]
    # in float64 the difference of squares loses nothing that float32 has
    sums = torch.cat([mean * count, (var + mean.square()) * count, mean.new_tensor([count])])
    dist.all_reduce(sums)
    total = float(sums[-1])
    mean, square = (sums[:-1] / total).chunk(2)
    dtype = _exact(x[:0]).dtype
    return mean.to(dtype), (square - mean.square()).clamp(min=0).to(dtype), total


def _exact(x: Tensor) -> Tensor:
    """In float32 at least: sums are never made in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(var) * weight + bias, where mean and var are of the x of all processes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, count: float) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var)
        ctx.count = count
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, 0.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Source: Ioffe & Szegedy, ICML 2015, section 3, with the sums over all processes."""
        x, weight, mean, var = ctx.saved_tensors
        of_x, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, mean, var, None, None, False, 0.0, [True, True, True]
        )
        sums = torch.stack([of_weight, of_bias])
        dist.all_reduce(sums)
        scale = torch.rsqrt(var)
        slope = -weight * scale.square() * sums[0] / ctx.count
        offset = -weight * scale * sums[1] / ctx.count - slope * mean
        through_statistics = torch.addcmul(offset[:, None, None], _exact(x), slope[:, None, None])
        return (of_x + through_statistics).to(x.dtype), of_weight, of_bias, None, None, None

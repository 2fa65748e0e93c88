"""A trained HoVer-Net made ready to be asked only: the same layers, fewer passes over memory.

BatchNorm is folded into the convolution before it, or, where an activation comes first, into the one after it; ReLU and
the sums of residual units are done by the convolution itself where the CPU's library (oneDNN) can. The network that is
given stays as it is. In float32 the answers are the network's own but for rounding; in bfloat16 they are rounded at as
many places as under autocast, or fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.hovernet.net_desc import Decoder, HoVerNet, HoVerOutput, SmallDecoder, output_shape
from models.hovernet.net_utils import (
    BasicBlock,
    DenseBlock,
    ResidualBlock,
    SamePadding,
    crop_margin,
    crop_to,
)


class FrozenNetwork(nn.Module):
    """What `HoVerNet.forward` answers, from images of bytes. net: as it is to be frozen. dtype: of the arithmetic."""

    def __init__(self, net: HoVerNet, dtype: torch.dtype) -> None:
        super().__init__()
        self.mode, self.dtype, self.mean = net.mode, dtype, net.input_mean
        self.levels = nn.ModuleList(_frozen_level(net, names) for names in net.level_names)
        first = next(layer for layer in self.levels.modules() if isinstance(layer, FrozenConv))
        first.weight.data /= net.input_std
        self.decoder = nn.ModuleDict({name: _frozen_decoder(branch) for name, branch in net.decoder.items()})
        self.requires_grad_(False)
        self.to(dtype).eval()

    def forward(self, images: Tensor) -> HoVerOutput:
        """images: uint8 (B, 3, H, W) RGB, sizes as HoVerNet takes them. Raises ValueError for others."""
        output_shape(self.mode, (images.shape[-2], images.shape[-1]))
        # Bytes, and bytes less 127.5, are exact in bfloat16.
        x = images.to(self.dtype).contiguous(memory_format=torch.channels_last)
        features = []
        x = x - self.mean if self.mean else x
        for level in self.levels:
            x = level(x)
            features.append(x)
        answers = {name: branch(tuple(features)) for name, branch in self.decoder.items()}
        return HoVerOutput(answers["np"], answers["hv"], answers.get("tp"))


def _onednn_takes(dtype: torch.dtype) -> bool:
    """Whether oneDNN's own convolutions can be called here: it has none of bfloat16 for a CPU with AVX2 alone."""
    ops: Any = torch.ops.mkldnn
    return torch.backends.mkldnn.is_available() and (dtype != torch.bfloat16 or ops._is_mkldnn_bf16_supported())


class FrozenConv(nn.Module):
    """A convolution with what follows it: BatchNorm (folded), a sum with another tensor, ReLU."""

    def __init__(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None = None, relu: bool = False, pad: SamePadding | None = None
    ) -> None:
        super().__init__()
        weight = conv.weight.detach().float()
        bias = torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().float()
        if norm is not None:
            scale, offset = _scale_and_offset(norm)
            weight, bias = weight * scale[:, None, None, None], bias.to(scale.device) * scale + offset
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
        self.bias = nn.Parameter(bias.to(weight.device))
        self.relu, self.stride, self.groups = relu, [int(step) for step in conv.stride], conv.groups
        self.padding = [int(px) for px in cast(tuple[int, int], conv.padding)]
        self.before = (0, 0, 0, 0)
        if pad is not None and pad.before == pad.after:
            self.padding = [px + pad.before for px in self.padding]
        elif pad is not None:
            self.before = (pad.before, pad.after, pad.before, pad.after)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """Float (B, C, H, W), and one of the output's shape that is added before the ReLU, or None."""
        if any(self.before):
            x = F.pad(x, self.before)
        if x.device.type == "cpu" and _onednn_takes(x.dtype):
            return self._by_onednn(x, added)
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        if added is not None:
            y += added
        return y.relu_() if self.relu else y

    def _by_onednn(self, x: Tensor, added: Tensor | None) -> Tensor:
        relu = "relu" if self.relu else None
        shape = (self.padding, self.stride, [1, 1], self.groups)
        ops: Any = torch.ops.mkldnn
        if added is None:
            one: Tensor = ops._convolution_pointwise(x, self.weight, self.bias, *shape, relu or "none", [], "")
            return one
        both: Tensor = ops._convolution_pointwise.binary(
            x, added, self.weight, self.bias, *shape, "add", 1.0, relu, [], ""
        )
        return both


class FrozenPreact(nn.Module):
    """BatchNorm and ReLU before convolutions: relu(s x + b), each channel with a sign s and an offset b.

    The scale is left to the convolution that follows, see `folded_scale`.
    """

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        scale, offset = _scale_and_offset(norm)
        channels = scale.numel()
        self.folded_scale = torch.where(scale == 0, torch.ones_like(scale), scale.abs())
        one = nn.Conv2d(channels, channels, 1, groups=channels)
        one.weight.data = torch.sign(scale)[:, None, None, None]
        cast(nn.Parameter, one.bias).data = offset / self.folded_scale
        self.conv = FrozenConv(one, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, C, H, W) -> the same shape."""
        out: Tensor = self.conv(x)
        return out


class FrozenResidualBlock(nn.Module):
    """A ResidualBlock; each sum is done by the last convolution of its unit."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.shortcut = FrozenConv(block.shortcut)
        self.units = nn.ModuleList(_frozen_row(cast(nn.Sequential, unit)) for unit in block.units)
        self.norm = cast(nn.BatchNorm2d, block.blk_bna[0])

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, C, H, W) -> float, as ResidualBlock."""
        shortcut = self.shortcut(x)
        for unit in self.units:
            *before, last = cast(nn.Sequential, unit)
            for layer in before:
                x = layer(x)
            x = shortcut = last(x, shortcut)
        return _norm_relu(self.norm, x)


class FrozenDenseBlock(nn.Module):
    """A DenseBlock."""

    def __init__(self, block: DenseBlock) -> None:
        super().__init__()
        self.units = nn.ModuleList(_frozen_row(cast(nn.Sequential, unit)) for unit in block.units)
        self.norm = cast(nn.BatchNorm2d, block.blk_bna[0])

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, C, H, W) -> float, as DenseBlock."""
        for unit in self.units:
            new = unit(x)
            x = torch.cat([crop_to(x, new), new], dim=1)
        return _norm_relu(self.norm, x)


class FrozenBasicBlock(nn.Module):
    """A BasicBlock."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.conv1 = FrozenConv(block.conv1, block.bn1, relu=True)
        self.conv2 = FrozenConv(block.conv2, block.bn2, relu=True)
        plain = isinstance(block.shortcut, nn.Identity)
        self.shortcut = nn.Identity() if plain else _frozen_row(cast(nn.Sequential, block.shortcut))

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, C, H, W) -> float, as BasicBlock."""
        out: Tensor = self.conv2(self.conv1(x), self.shortcut(x))
        return out


class FrozenDecoder(nn.Module):
    """A branch of the published network."""

    def __init__(self, branch: Decoder) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_frozen_row(stage) for stage in (branch.u3, branch.u2, branch.u1))
        self.norm, self.head = cast(nn.BatchNorm2d, branch.u0[0]), FrozenConv(cast(nn.Conv2d, branch.u0[2]))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """As Decoder."""
        x = features[-1]
        for stage, skip in zip(self.stages, features[-2::-1], strict=True):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = stage(x.add_(crop_to(skip, x)))
        out: Tensor = self.head(_norm_relu(self.norm, x))
        return out


class FrozenSmallDecoder(nn.Module):
    """A branch of the small network; the sums are done by the convolutions of the skips."""

    def __init__(self, branch: SmallDecoder) -> None:
        super().__init__()
        self.down8, self.mix2 = _frozen_row(branch.down8), _frozen_row(branch.mix2)
        self.mix4 = nn.Sequential(*(_frozen_row(cast(nn.Sequential, part)) for part in branch.mix4))
        self.skip4, self.skip2, self.head = (FrozenConv(conv) for conv in (branch.skip4, branch.skip2, branch.head))

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """As SmallDecoder."""
        fine, middle, coarse = features
        x = crop_margin(F.interpolate(self.down8(crop_margin(coarse, 2)), scale_factor=2, mode="nearest"), 1)
        x = self.mix4(self.skip4(crop_margin(middle, 5), x))
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        x = self.mix2(self.skip2(crop_margin(fine, 14), x))
        return F.pixel_shuffle(self.head(x), 2)


def _frozen_level(net: HoVerNet, names: Sequence[str]) -> nn.Sequential:
    return nn.Sequential(*(_frozen(net.get_submodule(name)) for name in names))


def _frozen_decoder(branch: nn.Module) -> nn.Module:
    if isinstance(branch, SmallDecoder):
        return FrozenSmallDecoder(branch)
    return FrozenDecoder(cast(Decoder, branch))


def _frozen(layer: nn.Module) -> nn.Module:
    if isinstance(layer, ResidualBlock):
        return FrozenResidualBlock(layer)
    if isinstance(layer, DenseBlock):
        return FrozenDenseBlock(layer)
    if isinstance(layer, BasicBlock):
        return FrozenBasicBlock(layer)
    if isinstance(layer, nn.Conv2d):
        return FrozenConv(layer)
    return _frozen_row(cast(nn.Sequential, layer))


def _frozen_row(row: nn.Sequential) -> nn.Sequential:
    """Layers in a row: [pad] convolution [norm] [relu] become one, norm and relu before a convolution a preact."""
    layers = list(row)
    frozen: list[nn.Module] = []
    scale: Tensor | None = None
    while layers:
        layer = layers.pop(0)
        if isinstance(layer, nn.BatchNorm2d):
            layers.pop(0)  # its ReLU
            preact = FrozenPreact(layer)
            frozen.append(preact)
            scale = preact.folded_scale
            continue
        pad = layer if isinstance(layer, SamePadding) else None
        layer = layers.pop(0) if pad is not None else layer
        if not isinstance(layer, nn.Conv2d):
            frozen.append(_frozen(layer))
            continue
        norm = cast(nn.BatchNorm2d, layers.pop(0)) if layers and isinstance(layers[0], nn.BatchNorm2d) else None
        relu = bool(layers) and isinstance(layers[0], nn.ReLU)
        if relu:
            layers.pop(0)
        conv = FrozenConv(layer, norm, relu, pad)
        if scale is not None:
            conv.weight.data *= scale[None, :, None, None]
            scale = None
        frozen.append(conv)
    return nn.Sequential(*frozen)


def _scale_and_offset(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What BatchNorm does once it is trained: x * scale + offset, float32 (C,) each."""
    mean, var = cast(Tensor, norm.running_mean).float(), cast(Tensor, norm.running_var).float()
    scale = norm.weight.detach().float() / torch.sqrt(var + norm.eps)
    return scale, norm.bias.detach().float() - mean * scale


def _norm_relu(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """BatchNorm and ReLU of a tensor that several others read."""
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    return F.batch_norm(x, mean, var, norm.weight, norm.bias, training=False, eps=norm.eps).relu_()

"""Blocks that HoVer-Net is built of. Tensors are float (B, C, H, W).

The names of layers and their order are those of the published networks, so that published weights load as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SamePadding(nn.Module):
    """Zero padding before a `valid` convolution, as TensorFlow's `same` for sizes that the stride divides.

    An odd pixel goes to the bottom and right: (B, C, H, W) -> (B, C, H + ksize - stride, W + ksize - stride).
    """

    def __init__(self, ksize: int, stride: int = 1) -> None:
        super().__init__()
        total = max(ksize - stride, 0)
        self.before, self.after = total // 2, total - total // 2

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, C, H, W), padded with zeros on all sides."""
        return F.pad(x, (self.before, self.after, self.before, self.after))


def conv(in_ch: int, out_ch: int, ksize: int = 1, stride: int = 1, padding: int = 0) -> nn.Conv2d:
    """A convolution without bias, `valid` unless padding is given."""
    return nn.Conv2d(in_ch, out_ch, ksize, stride=stride, padding=padding, bias=False)


def named(**layers: nn.Module) -> nn.Sequential:
    """Layers in a row under the given names, where `__` stands for `/` (`conv1__bn` -> `conv1/bn`)."""
    row = nn.Sequential()
    for name, layer in layers.items():
        row.add_module(name.replace("__", "/"), layer)
    return row


def _norm_relu(channels: int) -> nn.Sequential:
    return named(bn=nn.BatchNorm2d(channels), relu=nn.ReLU(inplace=True))


class ResidualBlock(nn.Module):
    """Pre-activated bottleneck units (He et al., Identity mappings in deep residual networks, 2016).

    The first unit has no pre-activation: the block before it ends with one. unit_ch: channels of the unit's three
    convolutions (1x1, 3x3, 1x1). stride: that of the first unit. (B, in_ch, H, W) -> (B, unit_ch[2], H/s, W/s).
    """

    def __init__(self, in_ch: int, unit_ch: Sequence[int], unit_count: int, stride: int = 1) -> None:
        super().__init__()
        first = _bottleneck(in_ch, unit_ch, stride, preact=False)
        others = [_bottleneck(unit_ch[2], unit_ch, 1, preact=True) for _ in range(unit_count - 1)]
        self.units = nn.ModuleList([first, *others])
        self.shortcut = conv(in_ch, unit_ch[2], stride=stride)
        self.blk_bna = _norm_relu(unit_ch[2])

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, in_ch, H, W) -> float (B, unit_ch[2], H/stride, W/stride)."""
        shortcut = self.shortcut(x)
        for unit in self.units:
            x = unit(x) + shortcut
            shortcut = x
        out: Tensor = self.blk_bna(x)
        return out


def _bottleneck(in_ch: int, unit_ch: Sequence[int], stride: int, preact: bool) -> nn.Sequential:
    before: dict[str, nn.Module] = {}
    if preact:
        before = {"preact__bn": nn.BatchNorm2d(in_ch), "preact__relu": nn.ReLU(inplace=True)}
    return named(
        **before,
        conv1=conv(in_ch, unit_ch[0]),
        conv1__bn=nn.BatchNorm2d(unit_ch[0]),
        conv1__relu=nn.ReLU(inplace=True),
        conv2__pad=SamePadding(3, stride),
        conv2=conv(unit_ch[0], unit_ch[1], 3, stride),
        conv2__bn=nn.BatchNorm2d(unit_ch[1]),
        conv2__relu=nn.ReLU(inplace=True),
        conv3=conv(unit_ch[1], unit_ch[2]),
    )


class DenseBlock(nn.Module):
    """Densely connected units of `valid` convolutions (Huang et al., 2017): 1x1 to 128, then ksize in 4 groups to 32.

    (B, in_ch, H, W) -> (B, in_ch + 32 * unit_count, H - d, W - d) with d = unit_count * (ksize - 1).
    """

    def __init__(self, in_ch: int, ksize: int, unit_count: int) -> None:
        super().__init__()
        self.units = nn.ModuleList(_dense_unit(in_ch + 32 * index, ksize) for index in range(unit_count))
        self.blk_bna = _norm_relu(in_ch + 32 * unit_count)

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, in_ch, H, W) -> float, see the class."""
        for unit in self.units:
            new = unit(x)
            x = torch.cat([crop_to(x, new), new], dim=1)
        out: Tensor = self.blk_bna(x)
        return out


def _dense_unit(in_ch: int, ksize: int) -> nn.Sequential:
    return named(
        preact_bna__bn=nn.BatchNorm2d(in_ch),
        preact_bna__relu=nn.ReLU(inplace=True),
        conv1=conv(in_ch, 128),
        conv1__bn=nn.BatchNorm2d(128),
        conv1__relu=nn.ReLU(inplace=True),
        conv2=nn.Conv2d(128, 32, ksize, groups=4, bias=False),
    )


class UpSample2x(nn.Module):
    """Each pixel becomes 2 x 2 of the same value: (B, C, H, W) -> (B, C, 2H, 2W).

    The buffer is in the published state dicts; it only ever holds ones.
    """

    unpool_mat: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("unpool_mat", torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, C, H, W) -> float (B, C, 2H, 2W)."""
        return F.interpolate(x, scale_factor=2, mode="nearest")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., 2016): (B, in_ch, H, W) -> (B, out_ch, H/stride, W/stride)."""

    def __init__(self, in_ch: int, out_ch: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv(in_ch, out_ch, 3, stride, padding=1)
        self.bn1 = nn.BatchNorm2d(out_ch)
        self.conv2 = conv(out_ch, out_ch, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_ch)
        plain = in_ch == out_ch and stride == 1
        self.shortcut = (
            nn.Identity() if plain else named(conv=conv(in_ch, out_ch, 1, stride), bn=nn.BatchNorm2d(out_ch))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Float (B, in_ch, H, W) -> float (B, out_ch, H/stride, W/stride)."""
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x), inplace=True)


def conv_bn_relu(in_ch: int, out_ch: int, ksize: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    return named(
        conv=conv(in_ch, out_ch, ksize, stride, padding), bn=nn.BatchNorm2d(out_ch), relu=nn.ReLU(inplace=True)
    )


def crop_margin(x: Tensor, margin: int) -> Tensor:
    """Cut `margin` px from each side: (B, C, H, W) -> (B, C, H - 2 margin, W - 2 margin)."""
    return x[..., margin : x.shape[-2] - margin, margin : x.shape[-1] - margin]


def crop_to(x: Tensor, like: Tensor) -> Tensor:
    """The centre of x (B, C, H, W) with the height and width of `like`."""
    top, left = ((have - want) // 2 for have, want in zip(x.shape[-2:], like.shape[-2:], strict=True))
    return x[..., top : top + like.shape[-2], left : left + like.shape[-1]]


def init_weights(net: nn.Module) -> None:
    """Start as the reference does: He normal (fan out) for convolutions; BatchNorm is 1 and 0 from the start."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

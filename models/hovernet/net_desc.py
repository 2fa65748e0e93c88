"""HoVer-Net: one encoder, and one decoder per branch (np: nucleus or not; hv: distances to the centroid; tp: type).

Source: Graham et al., HoVer-Net: Simultaneous segmentation and classification of nuclei in multi-tissue histology
images, Medical Image Analysis 58, 2019. Modes 'original' and 'fast' hold the same parameters under the same names as
the published networks; 'small' is a network of .9 M parameters for CPUs.

All modes are fully convolutional. The output is the centre of the input:

| mode     | usual input -> output | output is smaller by | sizes of input      |
|----------|-----------------------|----------------------|---------------------|
| original | 270 -> 80             | 190                  | 8 n + 6, from 198   |
| fast     | 256 -> 164            | 92                   | 8 n, from 96        |
| small    | 256 -> 192            | 64                   | 8 n, from 72        |
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.encoder import Encoder
from models.hovernet.net_utils import (
    DenseBlock,
    SamePadding,
    UpSample2x,
    conv,
    conv_bn_relu,
    crop_margin,
    crop_to,
    init_weights,
    named,
)


class HoVerOutput(NamedTuple):
    """np: (B, 2, h, w) logits (background, nucleus). hv: (B, 2, h, w), h then v. tp: (B, T, h, w) logits or None."""

    np: Tensor
    hv: Tensor
    tp: Tensor | None


class PatchShapes(NamedTuple):
    """Pixels (h, w) of a network's input and of its output, which lies at the input's centre."""

    input: tuple[int, int]
    output: tuple[int, int]


class _Sizes(NamedTuple):
    usual_input: int
    lost: int  # by how much the output is smaller than the input
    odd: int  # input sizes are 8 n + odd
    reach: int  # px on each side of an output pixel, from which on the input cannot change it


def _sizes(mode: str) -> _Sizes:
    return {
        "original": _Sizes(270, 190, 6, 155),
        "fast": _Sizes(256, 92, 0, 104),
        "small": _Sizes(256, 64, 0, 72),
    }[mode]


def patch_shapes(mode: str) -> PatchShapes:
    """The usual (input, output) shapes of a mode: original 270 -> 80, fast 256 -> 164, small 256 -> 192."""
    sizes = _sizes(mode)
    output = sizes.usual_input - sizes.lost
    return PatchShapes((sizes.usual_input,) * 2, (output,) * 2)


def output_shape(mode: str, input_shape: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of the output for an input of (H, W) px. Raises ValueError for a size that the strides do not fit."""
    sizes = _sizes(mode)
    for size in input_shape:
        if size % 8 != sizes.odd or size <= sizes.lost:
            raise ValueError(f"mode '{mode}' takes sizes of 8 n + {sizes.odd} px above {sizes.lost}, not {input_shape}")
    height, width = input_shape
    return height - sizes.lost, width - sizes.lost


def margin(mode: str) -> int:
    """How many px round a pixel decide on it, rounded up to what the strides allow: 155, 104 or 72.

    The encoders pad with zeros. Where the input reaches so far beyond each pixel that is answered for, no answer sees
    any of that padding, and it is the same whatever the size of the input and wherever it begins, in steps of 8 px.
    """
    return _sizes(mode).reach


def input_shape(mode: str, wanted: tuple[int, int]) -> tuple[int, int]:
    """The smallest input (H, W) whose output covers at least `wanted` (h, w) px."""
    sizes = _sizes(mode)
    height, width = (-(-(size + sizes.lost - sizes.odd) // 8) * 8 + sizes.odd for size in wanted)
    return height, width


class HoVerNet(Encoder):
    """The network. mode: 'original', 'fast' or 'small'. nr_types: number of types with background, or None: no tp."""

    def __init__(self, mode: str = "original", nr_types: int | None = None) -> None:
        super().__init__(mode)
        self.nr_types = nr_types
        branches = {"np": 2, "hv": 2} if nr_types is None else {"tp": nr_types, "np": 2, "hv": 2}
        if mode == "small":
            self.decoder = nn.ModuleDict({name: SmallDecoder(count) for name, count in branches.items()})
        else:
            ksize = 5 if mode == "original" else 3
            self.decoder = nn.ModuleDict({name: Decoder(count, ksize) for name, count in branches.items()})
            self.upsample2x = UpSample2x()
        init_weights(self.decoder)
        for branch in self.decoder.values():
            if isinstance(branch, SmallDecoder):
                branch.start_even()

    def forward(self, images: Tensor) -> HoVerOutput:
        """images: float32 (B, 3, H, W) RGB 0..255, sizes as in the module's table. Raises ValueError for others."""
        output_shape(self.mode, (images.shape[-2], images.shape[-1]))
        features = self.encode(images)
        answers = {name: branch(features) for name, branch in self.decoder.items()}
        return HoVerOutput(answers["np"], answers["hv"], answers.get("tp"))


class Decoder(nn.Sequential):
    """One branch of the published network: three times up, each with the encoder's features added.

    ksize: 5 for 'original', 3 for 'fast'. Convolutions are `valid` but for the last, so the output shrinks.
    """

    def __init__(self, out_ch: int, ksize: int) -> None:
        super().__init__()
        self.u3 = named(conva=conv(1024, 256, ksize), dense=DenseBlock(256, ksize, 8), convf=conv(512, 512))
        self.u2 = named(conva=conv(512, 128, ksize), dense=DenseBlock(128, ksize, 4), convf=conv(256, 256))
        self.u1 = named(conva__pad=SamePadding(ksize), conva=conv(256, 64, ksize))
        head = nn.Conv2d(64, out_ch, 1)
        self.u0 = named(bn=nn.BatchNorm2d(64), relu=nn.ReLU(inplace=True), conv=head)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Features of `Encoder.encode` at strides 1, 2, 4, 8 -> float (B, out_ch, h, w)."""
        x = features[-1]
        for stage, skip in zip((self.u3, self.u2, self.u1), features[-2::-1], strict=True):
            x = _double(x)
            x = stage(x + crop_to(skip, x))
        out: Tensor = self.u0(x)
        return out


HEAD_SCALE = 0.05


class SmallDecoder(nn.Module):
    """One branch of the small network: stride 8 -> 4 -> 2, then 2 x 2 pixels out of each (Shi et al., 2016).

    What the output does not need is cut away early, and convolutions are `valid`: no padding is ever seen.
    """

    def __init__(self, out_ch: int) -> None:
        super().__init__()
        self.down8 = conv_bn_relu(128, 64, 1)
        self.skip4 = conv(64, 64)
        self.mix4 = named(first=conv_bn_relu(64, 64, 3), second=conv_bn_relu(64, 32, 3))
        self.skip2 = conv(32, 32)
        self.mix2 = conv_bn_relu(32, 32, 3)
        self.head = nn.Conv2d(32, 4 * out_ch, 3)
        self.shuffle = nn.PixelShuffle(2)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Features at strides 2, 4, 8 of (H, W) px -> float (B, out_ch, H - 64, W - 64)."""
        fine, middle, coarse = features
        x = crop_margin(_double(self.down8(crop_margin(coarse, 2))), 1)
        x = self.mix4(x + self.skip4(crop_margin(middle, 5)))
        x = _double(x)
        x = self.mix2(x + self.skip2(crop_margin(fine, 14)))
        out: Tensor = self.shuffle(self.head(x))
        return out

    @torch.no_grad()
    def start_even(self) -> None:
        """Start near 0, and the four pixels that come of one equal, against checkerboards (Aitken et al., 2017).

        From He's weights hv began around 5, and a short training spent itself on taking that back.
        """
        for values in (self.head.weight, self.head.bias):
            assert values is not None
            values.copy_(HEAD_SCALE * values[::4].repeat_interleave(4, dim=0))


def _double(x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2, mode="nearest")


def count_parameters(net: nn.Module) -> int:
    """How many values `net` learns."""
    return sum(parameter.numel() for parameter in net.parameters() if parameter.requires_grad)


def crop_output(output: HoVerOutput, shape: tuple[int, int]) -> HoVerOutput:
    """The centre of an output, (h, w) px of it; where the rest is odd, the shorter side is at the top and left."""
    wanted = output.np.new_empty((0, 0, *shape))
    types = None if output.tp is None else crop_to(output.tp, wanted)
    return HoVerOutput(crop_to(output.np, wanted), crop_to(output.hv, wanted), types)


@torch.no_grad()
def softmax_maps(output: HoVerOutput) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of an output: np probability float32 (B, h, w); hv float32 (B, h, w, 2); most probable type uint8 (B, h, w)."""
    np_prob = output.np.float().softmax(1)[:, 1]
    types = None if output.tp is None else output.tp.argmax(1).to(torch.uint8)
    return np_prob, output.hv.float().permute(0, 2, 3, 1).contiguous(), types


@torch.no_grad()
def type_probabilities(output: HoVerOutput) -> Tensor:
    """Probability of each type, float16 (B, h, w, T), of the output of a network that tells types."""
    assert output.tp is not None, "this network tells no types"
    return output.tp.float().softmax(1).permute(0, 2, 3, 1).half().contiguous()

"""The encoders that the classifier and HoVer-Net share, and the hand-over of one's weights to the other.

A network *is* an encoder: it subclasses `Encoder`, calls `super().__init__(mode)` first and adds its own layers after.
The encoder's layers then stand at the top level of every state dict under the same names (`conv0`, `d0`, ...: those of
HoVer-Net), `encode` reads its features, and `copy_encoder` moves exactly these layers between any two networks.

    class PatchClassifier(Encoder):
        def __init__(self, mode: str, nr_classes: int) -> None:
            super().__init__(mode)
            self.head = nn.Conv2d(self.channels[-1], nr_classes, 1)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hovernet_cyclic.core.errors import CheckpointError, RecipeError
from models.hovernet.net_utils import BasicBlock, ResidualBlock, SamePadding, conv, conv_bn_relu, init_weights, named


@dataclass(frozen=True)
class EncoderPlan:
    """What an encoder is made of.

    layers: name -> layer, in order. levels: the layers that make each level, finest first; a level's input is the
    level before. strides, channels: of each level's features. mean, std: images are normalised to (x - mean) / std.
    """

    layers: dict[str, nn.Module]
    levels: tuple[tuple[str, ...], ...]
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    mean: float
    std: float


def preact_resnet50(mode: str) -> EncoderPlan:
    """HoVer-Net's pre-activated ResNet-50 without pooling (Graham et al., Medical Image Analysis 2019).

    mode: 'fast' pads the first convolution; 'original' does not, so its features are 6 px smaller at stride 1.
    """
    first: dict[str, nn.Module] = {"pad": SamePadding(7)} if mode == "fast" else {}
    conv0 = named(**first, __=conv(3, 64, 7), bn=nn.BatchNorm2d(64), relu=nn.ReLU(inplace=True))
    layers: dict[str, nn.Module] = {
        "conv0": conv0,
        "d0": ResidualBlock(64, (64, 64, 256), 3),
        "d1": ResidualBlock(256, (128, 128, 512), 4, stride=2),
        "d2": ResidualBlock(512, (256, 256, 1024), 6, stride=2),
        "d3": ResidualBlock(1024, (512, 512, 2048), 3, stride=2),
        "conv_bot": conv(2048, 1024),
    }
    levels = (("conv0", "d0"), ("d1",), ("d2",), ("d3", "conv_bot"))
    return EncoderPlan(layers, levels, (1, 2, 4, 8), (256, 512, 1024, 1024), mean=0.0, std=255.0)


def small_resnet() -> EncoderPlan:
    """A residual encoder of 0.7 M parameters that two CPU cores can train. Its finest level is at stride 2."""
    layers: dict[str, nn.Module] = {
        "stem": conv_bn_relu(3, 32, 3, stride=2, padding=1),
        "e0": nn.Sequential(BasicBlock(32, 32), BasicBlock(32, 32)),
        "e1": nn.Sequential(BasicBlock(32, 64, stride=2), BasicBlock(64, 64)),
        "e2": nn.Sequential(BasicBlock(64, 128, stride=2), BasicBlock(128, 128)),
    }
    levels = (("stem", "e0"), ("e1",), ("e2",))
    return EncoderPlan(layers, levels, (2, 4, 8), (32, 64, 128), mean=127.5, std=63.75)


def encoder_plan(mode: str) -> EncoderPlan:
    """The plan of a network mode: 'original', 'fast' or 'small'. Raises RecipeError for another."""
    if mode == "small":
        return small_resnet()
    if mode in ("original", "fast"):
        return preact_resnet50(mode)
    raise RecipeError(f"The network mode is '{mode}': use one of original, fast, small.")


class Encoder(nn.Module):
    """Layers that turn images into features at several strides; the base of every network here.

    mode: 'original', 'fast' or 'small'. strides, channels: of the features of `encode`, finest first.
    encoder_names: the names of the encoder's own layers among the children.
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        plan = encoder_plan(mode)
        self.mode, self.encoder_frozen = mode, False
        self.strides, self.channels = plan.strides, plan.channels
        self.encoder_names = tuple(plan.layers)
        self._levels, self._mean, self._std = plan.levels, plan.mean, plan.std
        for name, layer in plan.layers.items():
            self.add_module(name, layer)
            init_weights(layer)

    def encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features of images, finest first.

        images: float32 (B, 3, H, W) RGB 0..255, H and W multiples of 8 ('original': 6 more). Returns one float
        (B, channels[i], H / strides[i], W / strides[i]) per level ('original': of (H - 6, W - 6)).
        """
        x = (images - self._mean) / self._std
        features = []
        for level in self._levels:
            for name in level:
                x = self.get_submodule(name)(x)
            features.append(x)
        return tuple(features)

    @property
    def level_names(self) -> tuple[tuple[str, ...], ...]:
        """The names of the layers that make each level, finest first."""
        return self._levels

    @property
    def input_mean(self) -> float:
        """What is taken off each value of an image, 0..255."""
        return self._mean

    @property
    def input_std(self) -> float:
        """What the rest is divided by."""
        return self._std

    def encoder_layers(self) -> Iterator[nn.Module]:
        """The encoder's own layers, in order."""
        return (self.get_submodule(name) for name in self.encoder_names)

    def freeze_encoder(self, frozen: bool = True) -> None:
        """Keep the encoder as it is while the rest is trained (HoVer-Net's first phase), or let it learn again.

        Frozen, its parameters get no gradient and its BatchNorm keeps its statistics, also after `train()`.
        """
        self.encoder_frozen = frozen
        for layer in self.encoder_layers():
            layer.requires_grad_(not frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> Encoder:
        """As nn.Module.train; a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.encoder_frozen:
            for layer in self.encoder_layers():
                layer.eval()
        return self


@torch.no_grad()
def copy_encoder(source: Encoder, target: Encoder) -> None:
    """Copy the encoder's tensors (parameters and BatchNorm buffers) of `source` into `target`, and nothing else.

    Raises CheckpointError where the two encoders differ.
    """
    if [*source.encoder_names] != [*target.encoder_names] or source.mode != target.mode:
        raise CheckpointError(
            f"An encoder of mode '{source.mode}' cannot be handed to a network of mode '{target.mode}': "
            "give both the same mode."
        )
    for from_layer, to_layer in zip(source.encoder_layers(), target.encoder_layers(), strict=True):
        to_layer.load_state_dict(from_layer.state_dict())

"""Weights that an encoder starts from: files that were made elsewhere, recognised by the names in them.

HoVer-Net's encoder is pre-activated (He et al., Identity mappings in deep residual networks, 2016); torchvision's
ResNet-50 is not. Their convolutions have the same shapes at the same places. Of the BatchNorms only those fit that
follow a convolution within a unit: a pre-activated unit has none after its last convolution, and begins with one over
the sum of all before, which has no counterpart there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from hovernet_cyclic.core.errors import CheckpointError
from models.checkpoint import FORMAT_NAME, StateDict, clean_weights, read_content, weights_in
from models.encoder import Encoder
from models.hovernet.net_desc import HoVerNet

UNITS = (3, 4, 6, 3)  # of a ResNet-50, per block
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
# What torchvision's weights expect of RGB in 0..1; HoVer-Net's encoder takes the 0..1 as they are.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Pretrained(NamedTuple):
    """An encoder's tensors by the names of ours. layout: whose names the file had. fresh: those that it does not say.

    `fresh` are BatchNorms and `conv_bot` at most: every other convolution is in `weights`. decoders: the branches of a
    whole HoVer-Net, {} for an encoder alone.
    """

    weights: StateDict
    layout: str
    fresh: tuple[str, ...]
    decoders: StateDict


def read_pretrained(path: str | Path, mode: str) -> Pretrained:
    """What the encoder of a network mode can take from a file.

    The file may be hover_net's (ImageNet weights or a checkpoint), torchvision's ResNet-50, or a checkpoint of our own.
    Raises CheckpointError where it is none of these, or not for this mode.
    """
    path = Path(path)
    layout, weights = _by_our_names(path, mode)
    template = Encoder(mode).state_dict()
    taken = {name: weights[name] for name in template if name in weights}
    for name, value in taken.items():
        if value.shape != template[name].shape:
            raise CheckpointError(
                f"{path}: '{name}' has the shape {tuple(value.shape)}, and the encoder of mode '{mode}' "
                f"{tuple(template[name].shape)}: give weights of that encoder."
            )
    fresh = tuple(name for name in template if name not in taken)
    lacking = [name for name in fresh if template[name].ndim == 4 and not name.startswith("conv_bot")]
    if lacking:
        raise CheckpointError(
            f"{path}: it lacks '{lacking[0]}' of the encoder of mode '{mode}': give hover_net's weights, torchvision's "
            "ResNet-50, or a checkpoint of this mode."
        )
    decoders = {name: value for name, value in weights.items() if name.startswith("decoder.")}
    return Pretrained(taken, layout, fresh, decoders)


@torch.no_grad()
def load_pretrained(target: Encoder, pretrained: Pretrained) -> None:
    """Copy the weights into the encoder of `target`; what they do not say keeps its value."""
    own = target.state_dict()
    for name, value in pretrained.weights.items():
        own[name].copy_(value)


@torch.no_grad()
def load_decoders(target: HoVerNet, pretrained: Pretrained) -> tuple[str, ...]:
    """Copy the branches that `target` has in the same shapes: of other types, or none, all but `tp`.

    Returns their names. Only for runs that learn from drawn masks: the decoders of a published network have seen some.
    """
    taken = []
    for name, branch in target.decoder.items():
        prefix = f"decoder.{name}."
        own = {prefix + key: value for key, value in branch.state_dict().items()}
        theirs = {key: pretrained.decoders.get(key) for key in own}
        fits = all(value is not None and value.shape == own[key].shape for key, value in theirs.items())
        if fits:
            branch.load_state_dict({key.removeprefix(prefix): value for key, value in theirs.items()})
            taken.append(name)
    return tuple(taken)


def describe_pretrained(path: str | Path, pretrained: Pretrained, with_masks: bool = False) -> str:
    """A line for the person who named the file. with_masks: of a run on drawn masks, which takes decoders too."""
    taken, fresh = len(pretrained.weights), len(pretrained.fresh)
    line = f"{path}: an encoder in {pretrained.layout} layout; {taken} tensors are taken, {fresh} start anew."
    if not pretrained.decoders:
        return line
    if with_masks:
        return f"{line} Its decoders are taken too, where they fit."
    return f"{line} If drawn masks taught that network, this run no longer rests on image-level labels alone."


def _by_our_names(path: Path, mode: str) -> tuple[str, StateDict]:
    """(layout, all tensors of the file by our names where it is torchvision's, else by its own)."""
    content = read_content(path)
    if content.get("format") == FORMAT_NAME:
        stored = content.get("teacher") or content.get("student") or content.get("classifier")
        return "our own", clean_weights(path, stored)
    weights = weights_in(path, content)
    if "layer1.0.conv1.weight" not in weights:
        return "hover_net's", weights
    if mode == "small":
        raise CheckpointError(
            f"{path}: this is a ResNet, which the mode 'small' has no place for: set net.mode to fast or original."
        )
    return "torchvision's", _from_torchvision(path, weights)


def _from_torchvision(path: Path, weights: StateDict) -> StateDict:
    names = _torchvision_names()
    units = {name.rpartition(".conv")[0] for name in weights if name.startswith("layer") and ".conv" in name}
    lacking = [theirs for theirs in names.values() if theirs not in weights and "num_batches" not in theirs]
    if lacking or len(units) != sum(UNITS):
        raise CheckpointError(f"{path}: this is a ResNet, but no ResNet-50: give torchvision's resnet50.")
    taken = {ours: weights[theirs] for ours, theirs in names.items() if theirs in weights}
    return {**taken, **_rescaled_stem(taken)}


def _torchvision_names() -> dict[str, str]:
    """Our name -> torchvision's, of all that fits."""
    names = {"conv0./.weight": "conv1.weight", **_norm("conv0.bn", "bn1")}
    for block, count in enumerate(UNITS):
        names[f"d{block}.shortcut.weight"] = f"layer{block + 1}.0.downsample.0.weight"
        for unit in range(count):
            ours, theirs = f"d{block}.units.{unit}", f"layer{block + 1}.{unit}"
            names.update({f"{ours}.conv{i}.weight": f"{theirs}.conv{i}.weight" for i in (1, 2, 3)})
            for i in (1, 2):
                names.update(_norm(f"{ours}.conv{i}/bn", f"{theirs}.bn{i}"))
    return names


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in BATCH_NORM}


def _rescaled_stem(weights: Mapping[str, Tensor]) -> StateDict:
    """The first convolution W and its BatchNorm, for images x in 0..1 in place of (x - mean) / std.

    W ((x - mean) / std) = (W / std) x - sum(W mean / std), and the constant goes into the BatchNorm's mean.
    """
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    kernel = weights["conv0./.weight"]
    if kernel.shape[1] != 3:
        return {}  # is refused for its shape
    scaled = kernel.float() / std
    offset = (scaled * mean).sum((1, 2, 3))
    return {"conv0./.weight": scaled, "conv0.bn.running_mean": weights["conv0.bn.running_mean"] + offset}

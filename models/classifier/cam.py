"""Activation maps: where in an image the classifier saw its class.

`evidence` reads the high-resolution heads; the others explain the patch head. No map is rescaled by its own range: a
tile without nuclei stays dark. Gradients are of the *sum* of the class map, so that they do not depend on the size of
the image either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hovernet_cyclic.core.types import ActivationMap, ImageTile
from models.classifier.net_desc import Classifier

STRIDE = 8
LRP_GAMMA = 0.25
LRP_EPSILON = 0.25


def activation_map(classifier: Classifier, tile: ImageTile, method: str, device: torch.device) -> ActivationMap:
    """The map of one tile by 'evidence', 'cam', 'grad_cam', 'layer_cam' or 'lrp', at the tile's resolution.

    Raises KeyError for another method.
    """
    height, width = tile.image.shape[:2]
    rows, columns = (0, -height % STRIDE), (0, -width % STRIDE)
    padded = np.pad(tile.image, (rows, columns, (0, 0)), mode="symmetric")
    images = torch.from_numpy(padded).to(device).permute(2, 0, 1)[None].float()
    images = images.contiguous(memory_format=torch.channels_last)
    classifier.eval()
    maps, patch_logits = METHODS[method](classifier, images)
    maps = F.interpolate(maps.detach().float(), size=images.shape[-2:], mode="bilinear", align_corners=False)
    evidence = maps[0, :, :height, :width].cpu().numpy()
    probability = torch.sigmoid(patch_logits.detach().float())[0].cpu().numpy()
    return ActivationMap(tile.tile_id, evidence, probability)


@torch.no_grad()
def evidence_map(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean logit of the evidence heads, at the finest head's stride. images: float32 (B, 3, H, W)."""
    output = classifier(images)
    size = output.evidence[0].shape[-2:]
    maps = [F.interpolate(head.float(), size=size, mode="bilinear", align_corners=False) for head in output.evidence]
    return torch.stack(maps).mean(0), output.patch_logits


@torch.no_grad()
def cam(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Class activation map (Zhou et al., CVPR 2016): the class weights on the last features, bias included."""
    output = classifier(images)
    return output.class_map, output.patch_logits


def grad_cam(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Grad-CAM (Selvaraju et al., ICCV 2017) on the level at stride 4: channels weighted by their mean gradient."""

    def weigh(features: Tensor, gradient: Tensor) -> Tensor:
        return F.relu((features * gradient.mean((2, 3), keepdim=True)).sum(1, keepdim=True))

    return _gradient_map(classifier, images, stride=4, weigh=weigh)


def layer_cam(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """LayerCAM (Jiang et al., TIP 2021) on the level at stride 2: each position weighted by its positive gradient."""

    def weigh(features: Tensor, gradient: Tensor) -> Tensor:
        return F.relu((features * F.relu(gradient)).sum(1, keepdim=True))

    return _gradient_map(classifier, images, stride=2, weigh=weigh)


def lrp(classifier: Classifier, images: Tensor) -> tuple[Tensor, Tensor]:
    """Layer-wise relevance propagation (Bach et al., PLoS ONE 2015), gamma rule, down to the level at stride 2.

    Written as gradient times input of a network whose convolutions favour their positive weights (Montavon et al.,
    2019), which gives the same relevances.
    """
    with _gamma_rule(classifier):
        return _gradient_map(classifier, images, stride=2, weigh=lambda x, g: (x * g).sum(1, keepdim=True))


METHODS: dict[str, Callable[[Classifier, Tensor], tuple[Tensor, Tensor]]] = {
    "evidence": evidence_map,
    "cam": cam,
    "grad_cam": grad_cam,
    "layer_cam": layer_cam,
    "lrp": lrp,
}


def _gradient_map(
    classifier: Classifier, images: Tensor, stride: int, weigh: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """One map a class from the features at `stride` and the gradient there of the class's summed logits."""
    with torch.enable_grad():
        output = classifier(images)
        features = output.features[classifier.strides.index(stride)]
        maps = []
        for index in range(classifier.nr_classes):
            target = output.class_map[:, index].float().sum()
            (gradient,) = torch.autograd.grad(target, features, retain_graph=True)
            maps.append(weigh(features.float(), gradient.float()))
    return torch.cat(maps, 1), output.patch_logits


@contextmanager
def _gamma_rule(classifier: Classifier) -> Iterator[None]:
    """Inside, convolutions give the same values but pass gradients on by the gamma rule."""
    convolutions = (module for module in classifier.modules() if isinstance(module, nn.Conv2d))
    hooks = [module.register_forward_hook(_favour_positive) for module in convolutions]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _favour_positive(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    assert isinstance(module, nn.Conv2d)
    weight = module.weight + LRP_GAMMA * module.weight.clamp(min=0)
    favoured = F.conv2d(inputs[0], weight, None, module.stride, module.padding, module.dilation, module.groups)
    # the epsilon rule's stabiliser: without, units near zero hand on relevances without bound
    held = favoured + LRP_EPSILON * favoured.std() * torch.where(favoured < 0, -1.0, 1.0)
    share = (output / held).detach()
    return favoured * share + (output - favoured * share).detach()

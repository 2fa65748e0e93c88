"""The front end's network: HoVer-Net's encoder, a patch head on top and evidence heads on its finer levels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder import Encoder

EVIDENCE_STRIDES = (2, 4)  # coarser levels cannot outline a nucleus of 20 px
UNPADDED = 3  # px that the first convolution of mode "original" takes from each side
PRIOR_LOGIT = -2.0  # most pixels are background: starting there spares the first hundred steps


class ClassifierOutput(NamedTuple):
    """Logits of C image-level classes.

    patch_logits: float (B, C), one a patch. class_map: float (B, C, h, w), whose mean is patch_logits. evidence: per
    evidence stride, float (B, C, H / stride, W / stride), one a pixel. features: of the encoder, finest first.
    """

    patch_logits: Tensor
    class_map: Tensor
    evidence: tuple[Tensor, ...]
    features: tuple[Tensor, ...]


class Classifier(Encoder):
    """Classifies patches and says where it saw the evidence.

    The patch head is global average pooling and a linear layer (as CAM needs: Zhou et al., CVPR 2016), written as a
    1 x 1 convolution before the mean, which is the same. The evidence heads are 1 x 1 convolutions on the finer
    levels, whose receptive fields are about a nucleus wide.
    """

    def __init__(self, mode: str, nr_classes: int = 1) -> None:
        super().__init__(mode)
        self.nr_classes = nr_classes
        self.patch_head = nn.Conv2d(self.channels[-1], nr_classes, 1)
        self.evidence_strides = tuple(stride for stride in self.strides if stride in EVIDENCE_STRIDES)
        levels = [self.strides.index(stride) for stride in self.evidence_strides]
        heads = [nn.Conv2d(self.channels[level], nr_classes, 1) for level in levels]
        for head in heads:
            assert head.bias is not None
            nn.init.constant_(head.bias, PRIOR_LOGIT)
        self.evidence_heads = nn.ModuleList(heads)
        self._levels_read = levels

    def forward(self, images: Tensor) -> ClassifierOutput:
        """images: float32 (B, 3, H, W) RGB 0..255, H and W multiples of 8 -> ClassifierOutput."""
        if self.mode == "original":  # its first convolution is not padded
            images = F.pad(images, (UNPADDED,) * 4, mode="reflect")
        features = self.encode(images)
        class_map = self.patch_head(features[-1])
        evidence = tuple(
            head(features[level]) for head, level in zip(self.evidence_heads, self._levels_read, strict=True)
        )
        return ClassifierOutput(torch.mean(class_map, (2, 3)), class_map, evidence, features)

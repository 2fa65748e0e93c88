"""What the classifier is charged, and how it is judged."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from dataloader.classifier_loader import PatchBatch
from hovernet_cyclic.core.settings import FrontEndSettings
from hovernet_cyclic.core.types import LabelledPatch
from hovernet_cyclic.training.front_end import classifier_terms, patch_accuracy
from models.classifier.net_desc import ClassifierOutput

SETTINGS = FrontEndSettings(pool_fraction=0.25, pale_fraction=0.5, pale_weight=1.0)
LABELS = np.array([[1], [0]], np.float32)


def softplus(value):
    return math.log1p(math.exp(value))


def loss_of(evidence, stain, settings, cpu, patch_logits=((0.0,), (0.0,))):
    """evidence: (2, 4, 4) logits of a positive and of a negative patch, at stride 2 of 8 x 8 px."""
    head = torch.tensor(evidence, dtype=torch.float32)[:, None].requires_grad_()
    logits = torch.tensor(patch_logits)
    output = ClassifierOutput(logits, logits[..., None, None], (head,), ())
    batch = PatchBatch(np.zeros((2, 8, 8, 3), np.float32), LABELS, np.asarray(stain, np.float32))
    return classifier_terms(output, batch, settings, cpu), head


def test_the_terms_by_hand(cpu):
    """A positive patch with 4 evident pixels of 16, half of it pale; a negative one that is wrong at one pixel."""
    evidence = np.full((2, 4, 4), -1.0)
    evidence[0, 0] = 2.0
    evidence[1, 3, 3] = 3.0
    stain = np.zeros((2, 8, 8))
    stain[0, :4] = 1.0  # the upper half is dark: rows 0 and 1 of the evidence
    parts, _ = loss_of(evidence, stain, SETTINGS, cpu, patch_logits=((2.0,), (-1.0,)))
    assert parts["patch"].item() == pytest.approx((softplus(-2) + softplus(-1)) / 2, rel=1e-5)
    everywhere = (15 * softplus(-1) + softplus(3)) / 16
    assert parts["negative"].item() == pytest.approx(0.5 * (everywhere + softplus(3)), rel=1e-5)
    assert parts["positive"].item() == pytest.approx(0.5 * (softplus(-2) + softplus(-2)), rel=1e-5)
    assert parts["pale"].item() == pytest.approx(softplus(-1), rel=1e-5)


def test_each_term_pulls_where_it_should(cpu):
    rng = np.random.default_rng(0)
    evidence, stain = rng.normal(size=(2, 4, 4)), rng.random((2, 8, 8))
    for name, patch, sign in (("negative", 1, 1), ("positive", 0, -1), ("pale", 0, 1)):
        parts, head = loss_of(evidence, stain, SETTINGS, cpu)
        (gradient,) = torch.autograd.grad(parts[name], head)
        assert torch.all(sign * gradient[patch] >= 0) and (gradient[patch] != 0).any()
        assert torch.all(gradient[1 - patch] == 0), "the other patch is not its business"


def test_no_share_and_no_weight_of_pale_pixels_is_no_term(cpu):
    evidence, stain = np.zeros((2, 4, 4)), np.zeros((2, 8, 8))
    for changes in ({"pale_fraction": 0.0}, {"pale_weight": 0.0}):
        parts, _ = loss_of(evidence, stain, dataclasses.replace(SETTINGS, **changes), cpu)
        assert parts["pale"].item() == 0


class Seer(torch.nn.Module):
    """Calls a patch positive where its grey value is above 100."""

    def forward(self, images):
        return ClassifierOutput(images.mean((2, 3))[:, :1] - 100, images, (), ())


class Patches:
    """(label, grey value, shape) of each patch."""

    def __init__(self, *patches):
        self._patches = patches
        self.patch_labels = np.array([[label] for label, _, _ in patches], np.float32)
        self.patch_shapes = [shape for _, _, shape in patches]

    def read_patch(self, index):
        label, grey, shape = self._patches[index]
        return LabelledPatch("", np.full((*shape, 3), grey, np.uint8), np.array([label], np.float32))


def test_accuracy_is_the_mean_of_recall_and_specificity(cpu):
    """Three of four positive and one of two negative patches are right, of any size, in batches of four."""
    rows = [(1, 150, (8, 8)), (1, 150, (9, 20)), (1, 150, (30, 5)), (1, 50, (8, 8)), (0, 50, (4, 4)), (0, 150, (8, 8))]
    source = Patches(*rows)
    assert patch_accuracy(Seer(), source, range(6), cpu, batch_size=4) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert patch_accuracy(Seer(), source, [0, 4], cpu) == 1


def test_accuracy_is_unknown_where_a_label_is_missing(cpu):
    source = Patches((1, 150, (8, 8)))
    assert math.isnan(patch_accuracy(Seer(), source, [0], cpu)) and math.isnan(patch_accuracy(Seer(), source, [], cpu))

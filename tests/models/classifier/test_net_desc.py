"""The classifier: its shapes in every mode, and what ties its heads together."""

import pytest
import torch

from models.classifier.net_desc import EVIDENCE_STRIDES, PRIOR_LOGIT, Classifier
from models.encoder import copy_encoder
from models.hovernet.net_desc import HoVerNet


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return Classifier("small", nr_classes=3).eval()


def images(*shape):
    return torch.rand(shape[0], 3, *shape[1:], generator=torch.Generator().manual_seed(1)) * 255


@pytest.mark.parametrize("mode", ["small", "fast", "original"])
@torch.no_grad()
def test_shapes_in_every_mode(mode):
    output = Classifier(mode, nr_classes=2).eval()(images(1, 32, 48))
    assert output.patch_logits.shape == (1, 2)
    assert output.class_map.shape == (1, 2, 4, 6)
    assert [tuple(head.shape) for head in output.evidence] == [(1, 2, 32 // s, 48 // s) for s in EVIDENCE_STRIDES]
    for values in (output.patch_logits, output.class_map, *output.evidence):
        assert torch.isfinite(values).all()


@torch.no_grad()
def test_the_patch_logit_is_the_mean_of_the_class_map(small):
    output = small(images(2, 24, 40))
    torch.testing.assert_close(output.patch_logits, output.class_map.mean((2, 3)))


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(small):
    both = images(2, 32, 32)
    torch.testing.assert_close(small(both).patch_logits[1:], small(both[1:]).patch_logits)


def test_the_evidence_heads_begin_at_background():
    for head in Classifier("small").evidence_heads:
        assert torch.all(head.bias == PRIOR_LOGIT)


def test_the_encoder_is_hovernets():
    torch.manual_seed(0)
    classifier, net = Classifier("small"), HoVerNet("small")
    names = set(classifier.state_dict()) & set(net.state_dict())
    assert names and all(name.split(".")[0] in classifier.encoder_names for name in names)
    copy_encoder(classifier, net)
    for name in names:
        torch.testing.assert_close(net.state_dict()[name], classifier.state_dict()[name], rtol=0, atol=0)

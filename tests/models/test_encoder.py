import copy

import pytest
import torch
from torch import nn

from hovernet_cyclic.core.errors import CheckpointError, RecipeError
from models.encoder import Encoder, copy_encoder
from models.hovernet.net_desc import HoVerNet


class PatchClassifier(Encoder):
    """The smallest network that shares an encoder with HoVerNet."""

    def __init__(self, mode="small"):
        super().__init__(mode)
        self.head = nn.Conv2d(self.channels[-1], 2, 1)


@pytest.mark.parametrize(
    ("mode", "size", "at_stride_1"),
    [("small", (64, 80), (64, 80)), ("fast", (16, 24), (16, 24)), ("original", (22, 30), (16, 24))],
)
def test_features_have_the_stated_strides_and_channels(mode, size, at_stride_1):
    encoder = Encoder(mode).eval()
    with torch.inference_mode():
        features = encoder.encode(torch.zeros(1, 3, *size))
    assert len(features) == len(encoder.strides) == len(encoder.channels)
    for feature, stride, channels in zip(features, encoder.strides, encoder.channels, strict=True):
        assert feature.shape == (1, channels, at_stride_1[0] // stride, at_stride_1[1] // stride)


def test_small_encoder_is_small():
    assert sum(parameter.numel() for parameter in Encoder("small").parameters()) < 750_000


def test_unknown_mode_is_named():
    with pytest.raises(RecipeError, match=r"'tiny'.*original, fast, small"):
        Encoder("tiny")


def test_copy_encoder_copies_the_encoder_and_nothing_else():
    source, target = PatchClassifier(), HoVerNet("small")
    source.encode(torch.rand(2, 3, 32, 32) * 255)  # moves the statistics of BatchNorm
    before = copy.deepcopy(target.state_dict())
    copy_encoder(source, target)
    given, after = source.state_dict(), target.state_dict()
    encoder_names = [name for name in after if name.split(".")[0] in target.encoder_names]
    assert any(name.endswith("running_mean") for name in encoder_names)
    assert any(not torch.equal(before[name], after[name]) for name in encoder_names)
    for name in encoder_names:
        assert torch.equal(after[name], given[name])
    for name in set(after) - set(encoder_names):
        assert torch.equal(after[name], before[name])


def test_a_copied_encoder_is_not_shared():
    source, target = PatchClassifier(), PatchClassifier()
    copy_encoder(source, target)
    with torch.no_grad():
        source.stem.conv.weight.zero_()
    assert target.stem.conv.weight.abs().sum() > 0


def test_encoders_that_differ_cannot_be_copied():
    with torch.device("meta"):
        fast, original, small = Encoder("fast"), Encoder("original"), Encoder("small")
    for source, target in ((fast, small), (fast, original)):
        with pytest.raises(CheckpointError, match=f"'{source.mode}'.*'{target.mode}'"):
            copy_encoder(source, target)


def test_a_frozen_encoder_stays_as_it_is_through_a_training_step():
    net = HoVerNet("small")
    net.freeze_encoder()
    net.train()
    before = copy.deepcopy(net.state_dict())
    optimiser = torch.optim.SGD(net.parameters(), 0.1)
    net(torch.rand(1, 3, 72, 72) * 255).np.square().mean().backward()
    optimiser.step()
    changed = {name.split(".")[0] for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"decoder"}
    net.freeze_encoder(False)
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(module.training for module in net.modules())


def test_what_joins_the_published_encoder_to_the_decoders_is_not_frozen():
    with torch.device("meta"):
        net = HoVerNet("fast")
    net.freeze_encoder()
    net.train()
    assert {name.split(".")[0] for name, value in net.named_parameters() if value.requires_grad} == {
        "conv_bot",
        "decoder",
    }
    assert net.conv_bot.training and not any(layer.training for layer in (net.conv0, net.d0, net.d3.units[2]))


def test_freezing_leaves_eval_mode_alone():
    net = HoVerNet("small").eval()
    net.freeze_encoder()
    net.freeze_encoder(False)
    assert not any(module.training for module in net.modules())

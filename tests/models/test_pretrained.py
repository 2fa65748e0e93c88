"""Encoders that begin with weights made elsewhere: files in each known layout, written here."""

import copy

import pytest
import torch
from torch import nn

from hovernet_cyclic.core.errors import CheckpointError
from hovernet_cyclic.core.types import Checkpoint
from models.checkpoint import FORMAT_VERSION, save_checkpoint
from models.classifier.net_desc import Classifier
from models.encoder import Encoder
from models.hovernet.net_desc import HoVerNet
from models.pretrained import describe_pretrained, load_decoders, load_pretrained, read_pretrained

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)


class Bottleneck(nn.Module):
    """A unit with torchvision's names."""

    def __init__(self, in_ch, width, stride, downsample):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_ch, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        if downsample:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_ch, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )


def torchvision_resnet(units=(3, 4, 6, 3)):
    """A state dict as torchvision.models.resnet50().state_dict() has it, with random values."""
    torch.manual_seed(1)
    net = nn.Module()
    net.conv1, net.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
    in_ch = 64
    for block, count in enumerate(units):
        width, stride = 64 * 2**block, 1 if block == 0 else 2
        row = [Bottleneck(in_ch if unit == 0 else 4 * width, width, stride, unit == 0) for unit in range(count)]
        setattr(net, f"layer{block + 1}", nn.Sequential(*row))
        in_ch = 4 * width
    net.fc = nn.Linear(in_ch, 3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
    return net.state_dict()


@pytest.fixture(scope="module")
def resnet50():
    return torchvision_resnet()


@pytest.fixture(scope="module")
def reference():
    """A HoVer-Net with values of its own everywhere."""
    torch.manual_seed(2)
    net = HoVerNet("fast")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
    return net.state_dict()


@pytest.fixture
def stored(tmp_path):
    def store(content):
        torch.save(content, tmp_path / "weights.tar")
        return tmp_path / "weights.tar"

    return store


def refused(path, mode):
    with pytest.raises(CheckpointError) as caught:
        read_pretrained(path, mode)
    sentence = str(caught.value)
    assert str(path) in sentence and sentence.endswith(".") and "\n" not in sentence
    return sentence


def encoder_tensors(net):
    return {name: value for name, value in net.state_dict().items() if name.split(".")[0] in net.encoder_names}


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("mode", ["fast", "original"])
def test_hover_nets_weights_are_taken_whole(reference, stored, mode, prefix):
    """Its ImageNet file has neither decoders nor conv_bot; the bottleneck then starts anew."""
    imagenet = {k: v for k, v in reference.items() if not k.startswith(("decoder.", "upsample2x", "conv_bot"))}
    path = stored({"desc": {prefix + name: value for name, value in imagenet.items()}})
    found = read_pretrained(path, mode)
    assert found.fresh == ("conv_bot.weight",) and found.weights.keys() == imagenet.keys()
    for target in (HoVerNet(mode), Classifier(mode, 1)):
        before = copy.deepcopy(target.state_dict())
        load_pretrained(target, found)
        for name, value in target.state_dict().items():
            assert torch.equal(value, imagenet.get(name, before[name])), name
    assert "hover_net's layout" in describe_pretrained(path, found)


def test_a_whole_hover_net_lends_its_bottleneck_too(reference, stored):
    found = read_pretrained(stored(reference), "fast")
    assert found.fresh == () and torch.equal(found.weights["conv_bot.weight"], reference["conv_bot.weight"])
    assert not any(name.startswith("decoder") for name in found.weights)


def test_batch_norms_that_a_file_lacks_start_anew_and_are_told(reference, stored):
    bare = {name: value for name, value in reference.items() if value.ndim == 4}
    found = read_pretrained(stored(bare), "fast")
    assert "d3.blk_bna.bn.running_mean" in found.fresh and not any("conv1.weight" in name for name in found.fresh)


@pytest.mark.parametrize("wrap", [lambda weights: weights, lambda weights: {"state_dict": weights, "epoch": 3}])
def test_of_torchvisions_resnet50_is_taken_what_fits(resnet50, stored, wrap):
    found = read_pretrained(stored(wrap(resnet50)), "fast")
    convolutions = [name for name, value in found.weights.items() if value.ndim == 4]
    assert len(convolutions) == 53, "all of them: 49 of the chain and 4 of the shortcuts"
    template = Encoder("fast").state_dict()
    skipped = {name.rpartition(".")[0] for name in found.fresh}
    preact = {f"d{b}.units.{u}.preact/bn" for b, count in enumerate((3, 4, 6, 3)) for u in range(1, count)}
    assert skipped == {"conv_bot", *preact, *(f"d{block}.blk_bna.bn" for block in range(4))}
    assert set(found.weights) | set(found.fresh) == set(template)
    pairs = {
        "d0.units.0.conv1.weight": "layer1.0.conv1.weight",
        "d2.units.5.conv2.weight": "layer3.5.conv2.weight",
        "d2.units.5.conv2/bn.running_var": "layer3.5.bn2.running_var",
        "d3.units.2.conv3.weight": "layer4.2.conv3.weight",
        "d1.shortcut.weight": "layer2.0.downsample.0.weight",
        "conv0.bn.bias": "bn1.bias",
    }
    for ours, theirs in pairs.items():
        assert torch.equal(found.weights[ours], resnet50[theirs]), ours


def test_the_first_layer_answers_as_torchvisions_does(resnet50, stored):
    """Ours takes 0..255 and no stride; theirs (x - mean) / std of 0..1. Every second pixel of ours is one of theirs."""
    encoder = Encoder("fast").eval()
    load_pretrained(encoder, read_pretrained(stored(resnet50), "fast"))
    conv, norm = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64).eval()
    for layer, name in ((conv, "conv1."), (norm, "bn1.")):
        layer.load_state_dict({k.removeprefix(name): v for k, v in resnet50.items() if k.startswith(name)})
    images = torch.rand(1, 3, 32, 32) * 255
    with torch.inference_mode():
        theirs = norm(conv((images / 255 - MEAN) / STD)).relu()
        ours = encoder.conv0(images / 255)[:, :, ::2, ::2]
    inside = slice(2, -2)  # their zeros beyond the border are a grey of ours
    assert torch.allclose(ours[..., inside, inside], theirs[..., inside, inside], rtol=1e-4, atol=1e-4)
    assert theirs.std() > 0.1


@pytest.mark.parametrize("part", ["teacher", "student", "classifier"])
def test_an_encoder_of_our_own_runs(tmp_path, part):
    net = Classifier("small", 1) if part == "classifier" else HoVerNet("small", 4)
    path = tmp_path / "state.tar"
    save_checkpoint(path, Checkpoint(FORMAT_VERSION, {}, 1, "done", 0, **{part: net.state_dict()}))
    found = read_pretrained(path, "small")
    assert found.fresh == () and found.weights.keys() == encoder_tensors(net).keys()
    fresh = HoVerNet("small")
    load_pretrained(fresh, found)
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in encoder_tensors(fresh).items())
    assert "lacks 'conv0./.weight'" in refused(path, "fast")


def test_other_files_are_refused_in_one_sentence(resnet50, reference, stored, tmp_path):
    assert "no such file" in refused(tmp_path / "none.tar", "fast")
    (tmp_path / "text.tar").write_text("weights")
    assert "cannot be loaded" in refused(tmp_path / "text.tar", "fast")
    assert "mode 'small' has no place for" in refused(stored(resnet50), "small")
    assert "lacks 'stem.conv.weight'" in refused(stored(reference), "small")
    assert "no ResNet-50" in refused(stored(torchvision_resnet((3, 4, 23, 3))), "fast")
    assert "no ResNet-50" in refused(stored({k: v for k, v in resnet50.items() if ".conv3." not in k}), "fast")
    assert "lacks 'conv0./.weight'" in refused(stored({"fc.weight": torch.zeros(3, 3)}), "fast")
    missing = {name: value for name, value in reference.items() if name != "d2.units.3.conv2.weight"}
    assert "lacks 'd2.units.3.conv2.weight'" in refused(stored(missing), "fast")
    wide = dict(resnet50, **{"layer1.0.conv1.weight": torch.zeros(128, 64, 1, 1)})
    assert "(128, 64, 1, 1)" in refused(stored(wide), "fast")


@pytest.mark.parametrize(
    ("theirs", "ours", "taken"),
    [
        (None, None, ("np", "hv")),
        (5, 5, ("tp", "np", "hv")),
        (5, 3, ("np", "hv")),
        (5, None, ("np", "hv")),
        (None, 5, ("np", "hv")),
    ],
)
def test_decoders_of_a_whole_network_are_taken_but_for_other_types(tmp_path, theirs, ours, taken):
    torch.manual_seed(0)
    published, target = HoVerNet("small", theirs), HoVerNet("small", ours)
    torch.save({"desc": published.state_dict()}, tmp_path / "net.tar")
    before = copy.deepcopy(target.state_dict())
    pretrained = read_pretrained(tmp_path / "net.tar", "small")
    assert load_decoders(target, pretrained) == taken
    for name, value in target.state_dict().items():
        whose = published.state_dict() if name.startswith(tuple(f"decoder.{branch}." for branch in taken)) else before
        assert torch.equal(value, whose[name]), name


def test_an_encoder_alone_brings_no_decoder(tmp_path):
    torch.save({"desc": Encoder("small").state_dict()}, tmp_path / "encoder.tar")
    assert load_decoders(HoVerNet("small"), read_pretrained(tmp_path / "encoder.tar", "small")) == ()


def test_a_person_is_told_what_becomes_of_decoders(tmp_path):
    torch.save({"desc": HoVerNet("small").state_dict()}, tmp_path / "net.tar")
    pretrained = read_pretrained(tmp_path / "net.tar", "small")
    assert describe_pretrained("net.tar", pretrained, with_masks=True).endswith("are taken too, where they fit.")
    assert "no longer rests on image-level labels alone" in describe_pretrained("net.tar", pretrained)
    encoder = pretrained._replace(decoders={})
    assert describe_pretrained("net.tar", encoder).endswith("start anew.")

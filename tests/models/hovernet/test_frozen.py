import numpy as np
import pytest
import torch

from models.hovernet import frozen
from models.hovernet.frozen import FrozenNetwork
from models.hovernet.net_desc import HoVerNet


def trained(mode, nr_types=None):
    """A network whose BatchNorm layers do something, with scales of both signs and of zero."""
    torch.manual_seed(0)
    net = HoVerNet(mode, nr_types).eval()
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.3)
            layer.running_var.uniform_(0.5, 3)
            layer.weight.data.normal_(0.6, 0.4)
            layer.weight.data[::7] = 0
            layer.bias.data.normal_(0, 0.3)
    return net


def images(side):
    return torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.fixture(params=["oneDNN", "plain"])
def kernels(request, monkeypatch):
    """On the CPU oneDNN does the sums; elsewhere, and where it is missing, PyTorch's own layers do."""
    if request.param == "plain":
        monkeypatch.setattr(frozen.torch.backends.mkldnn, "is_available", lambda: False)


@pytest.mark.parametrize(("mode", "nr_types", "side"), [("small", 4, 96), ("fast", None, 104), ("original", None, 198)])
@torch.inference_mode()
def test_a_frozen_network_answers_as_the_network_does(kernels, mode, nr_types, side):
    net, bytes_ = trained(mode, nr_types), images(side)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    wanted, found = net(bytes_.float()), FrozenNetwork(net, torch.float32)(bytes_)
    for name in ("np", "hv", "tp"):
        if getattr(wanted, name) is None:
            assert getattr(found, name) is None
        else:
            spread = getattr(wanted, name).std()
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=0, atol=1e-4 * spread)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@torch.inference_mode()
def test_in_bfloat16_it_is_no_further_off_than_autocast():
    net, bytes_ = trained("small"), images(160)
    exact = net(bytes_.float()).hv
    with torch.autocast("cpu", torch.bfloat16):
        usual = net(bytes_.float()).hv.float()
    found = FrozenNetwork(net, torch.bfloat16)(bytes_).hv.float()
    assert (found - exact).abs().mean() < 1.2 * (usual - exact).abs().mean()


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="takes sizes of 8 n"):
        FrozenNetwork(trained("small"), torch.float32)(images(90))

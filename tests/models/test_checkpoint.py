import os
import pickle

import numpy as np
import pytest
import torch

from hovernet_cyclic.core.errors import CheckpointError, DamagedCheckpointError
from hovernet_cyclic.core.types import Checkpoint
from models.checkpoint import FORMAT_VERSION, load_checkpoint, load_network, save_checkpoint
from models.encoder import Encoder
from models.hovernet.net_desc import HoVerNet

RECIPE = {"name": "test", "net": {"mode": "small", "nr_types": None}, "data": {"type_names": []}}


def checkpoint(**entries):
    return Checkpoint(
        **{"format_version": FORMAT_VERSION, "recipe": RECIPE, "cycle": 1, "stage": "done", "step": 7, **entries}
    )


def same_weights(first, second):
    assert list(first) == list(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(1)
    return HoVerNet("small", 4)


@pytest.fixture
def saved(tmp_path, small):
    path = tmp_path / "net.tar"
    save_checkpoint(path, checkpoint(teacher=small.state_dict(), rng={"torch": torch.get_rng_state(), "best": 0.5}))
    return path


def test_a_checkpoint_comes_back(saved, small):
    loaded = load_checkpoint(saved)
    assert (loaded.recipe, loaded.cycle, loaded.stage, loaded.step) == (RECIPE, 1, "done", 7)
    assert loaded.student is None and loaded.rng["best"] == 0.5
    same_weights(loaded.teacher, small.state_dict())


def test_an_optimiser_comes_back(tmp_path, small):
    net = HoVerNet("small")
    optimiser = torch.optim.AdamW(net.parameters())
    net(torch.rand(1, 3, 72, 72)).np.mean().backward()
    optimiser.step()
    save_checkpoint(tmp_path / "state.tar", checkpoint(optimisers={"student": optimiser.state_dict()}))
    optimiser.load_state_dict(load_checkpoint(tmp_path / "state.tar").optimisers["student"])


def test_any_bit_that_flips_is_found_or_changes_nothing(tmp_path):
    """torch.load alone looks at no checksum of what it reads."""
    path, rng = tmp_path / "state.tar", np.random.default_rng(0)
    weights = {"w": torch.arange(600.0), "b": torch.ones(3)}
    save_checkpoint(path, checkpoint(teacher=weights, position={"stage": "judge"}))
    whole, found = path.read_bytes(), 0
    for place in rng.permutation(len(whole))[:400]:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        try:
            loaded = load_checkpoint(path)
        except DamagedCheckpointError:
            found += 1
        else:
            same_weights(loaded.teacher, weights)
            assert (loaded.recipe, loaded.position) == (RECIPE, {"stage": "judge"})
    assert found > 200


@pytest.mark.parametrize("keep", [0, 1, 100, -80, -300])
def test_a_checkpoint_that_was_cut_off_is_found(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(DamagedCheckpointError, match=r"net\.tar"):
        load_checkpoint(saved)


def test_nothing_but_the_checkpoint_is_left_behind(saved):
    assert [path.name for path in saved.parent.iterdir()] == ["net.tar"]


def test_a_failed_save_keeps_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def fail(content, file):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CheckpointError, match=r"net\.tar.*No space left"):
        save_checkpoint(saved, checkpoint())
    assert saved.read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 1


def test_only_tensors_and_plain_values_are_saved(tmp_path):
    with pytest.raises(CheckpointError, match=r"rng\.numpy is a ndarray"):
        save_checkpoint(tmp_path / "net.tar", checkpoint(rng={"numpy": np.zeros(3)}))
    assert not list(tmp_path.iterdir())


def test_our_network_is_the_teacher_in_eval_mode(tmp_path, small):
    other = HoVerNet("small", 4)
    save_checkpoint(tmp_path / "a.tar", checkpoint(teacher=small.state_dict(), student=other.state_dict()))
    loaded = load_network(tmp_path / "a.tar")
    assert (loaded.mode, loaded.nr_types, loaded.recipe) == ("small", 4, RECIPE)
    assert not loaded.net.training
    same_weights(loaded.net.state_dict(), small.state_dict())


def test_without_a_teacher_it_is_the_student(tmp_path, small):
    save_checkpoint(tmp_path / "a.tar", checkpoint(student=small.state_dict()))
    same_weights(load_network(tmp_path / "a.tar").net.state_dict(), small.state_dict())


@pytest.mark.parametrize(("mode", "nr_types"), [("original", 6), ("fast", None), ("fast", 5)])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_hover_net_weights_are_recognised_by_their_content(tmp_path, mode, nr_types, prefix):
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in HoVerNet(mode, nr_types).state_dict().items()}
    one = torch.full((), 0.25)  # one number seen through every shape: the file stays small
    weights = {prefix + name: one.expand(shape) for name, shape in shapes.items() if not name.endswith("tracked")}
    torch.save({"desc": weights, "epoch": np.int64(50), "lr": np.float64(1e-4)}, tmp_path / "net.tar")
    loaded = load_network(tmp_path / "net.tar")
    assert (loaded.mode, loaded.nr_types, loaded.recipe) == (mode, nr_types, None)
    assert float(loaded.net.decoder["np"].u0.conv.bias.detach()[1]) == 0.25
    assert not loaded.net.training


def test_a_plain_state_dict_is_recognised(tmp_path, small):
    torch.save(small.state_dict(), tmp_path / "plain.pth")
    same_weights(load_network(tmp_path / "plain.pth").net.state_dict(), small.state_dict())


def everywhere(before):
    return lambda own: {before + name: value for name, value in own.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda own: {"state_dict": own, "epoch": 3},
        lambda own: {"model_state_dict": own, "args": {"lr": 1e-4}},
        lambda own: {"model": own},
        lambda own: {"net": own},
        lambda own: {"desc": everywhere("module.module.")(own)},
        lambda own: {"state_dict": everywhere("model.")(own), "hyper_parameters": {}},
        everywhere("net._orig_mod."),
        lambda own: {"desc": {name: torch.nn.Parameter(value, False) for name, value in own.items()}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found_where_trainers_put_them(tmp_path, small, wrap, zipped):
    torch.save(wrap(small.state_dict()), tmp_path / "net.tar", _use_new_zipfile_serialization=zipped)
    same_weights(load_network(tmp_path / "net.tar").net.state_dict(), small.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_become_float32(tmp_path, small, dtype):
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in small.state_dict().items()}
    torch.save({"desc": cast}, tmp_path / "net.tar")
    for name, value in load_network(tmp_path / "net.tar").net.state_dict().items():
        assert value.dtype == small.state_dict()[name].dtype and torch.equal(value, cast[name].to(value.dtype)), name


def test_a_checkpoint_as_hover_net_trains_it(tmp_path):
    """Its saver keeps the optimiser and the schedule beside the weights of a DataParallel network."""
    net = torch.nn.DataParallel(HoVerNet("small", 3))
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-4, betas=(0.9, 0.999))
    net.module(torch.rand(1, 3, 72, 72)).np.mean().backward()
    optimiser.step()
    schedule = torch.optim.lr_scheduler.StepLR(optimiser, 25)
    states = {"desc": net, "optimizer": optimiser, "lr_scheduler": schedule}
    torch.save({name: part.state_dict() for name, part in states.items()}, tmp_path / "net_epoch=1.tar")
    same_weights(load_network(tmp_path / "net_epoch=1.tar").net.state_dict(), net.module.state_dict())


def test_for_other_types_only_the_type_branch_starts_anew(saved, small):
    loaded = load_network(saved, nr_types=7)
    assert loaded.nr_types == loaded.net.nr_types == 7
    mine = small.state_dict()
    for name, value in loaded.net.state_dict().items():
        assert name.startswith("decoder.tp.") or torch.equal(value, mine[name])
    assert loaded.net.decoder["tp"].head.weight.shape[0] == 4 * 7


def test_types_can_be_added_to_a_network_without(tmp_path):
    net = HoVerNet("small")
    torch.save(net.state_dict(), tmp_path / "plain.tar")
    loaded = load_network(tmp_path / "plain.tar", nr_types=3)
    assert loaded.nr_types == 3
    assert torch.equal(loaded.net.stem.conv.weight, net.stem.conv.weight)


def one_sentence(error, path):
    text = str(error.value)
    assert text.startswith(f"{path}: ") and text.endswith(".") and "\n" not in text and len(text) < 400
    return text


def test_missing_file(tmp_path):
    for load in (load_checkpoint, load_network):
        with pytest.raises(CheckpointError) as error:
            load(tmp_path / "none.tar")
        assert "no such file" in one_sentence(error, tmp_path / "none.tar")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
def test_torn_file(saved, share):
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError) as error:
        load_network(saved)
    assert "torn" in one_sentence(error, saved)


def test_a_file_that_is_no_checkpoint(tmp_path):
    path = tmp_path / "notes.tar"
    path.write_text("not a network at all\n" * 40)
    with pytest.raises(CheckpointError) as error:
        load_network(path)
    one_sentence(error, path)
    torch.save(torch.zeros(3), path)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    one_sentence(error, path)


def test_a_folder(tmp_path):
    with pytest.raises(CheckpointError) as error:
        load_network(tmp_path)
    assert "is a folder" in one_sentence(error, tmp_path)


def test_an_image_is_no_checkpoint_with_code_in_it(tmp_path):
    path = tmp_path / "slide.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    with pytest.raises(CheckpointError) as error:
        load_network(path)
    assert "no checkpoint at all" in one_sentence(error, path)


class Intruder:
    def __reduce__(self):
        return os.mkdir, ("intruder",)


def old_format(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [torch.save, old_format, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.filterwarnings("error")
def test_code_in_a_file_is_not_run(tmp_path, monkeypatch, small, write):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.tar"
    write({"desc": small.state_dict(), "epoch": Intruder()}, path)
    with pytest.raises(CheckpointError) as error:
        load_network(path)
    one_sentence(error, path)
    assert not (tmp_path / "intruder").exists()


def test_newer_format(tmp_path):
    path = tmp_path / "net.tar"
    save_checkpoint(path, checkpoint(format_version=FORMAT_VERSION + 1))
    for load in (load_checkpoint, load_network):
        with pytest.raises(CheckpointError) as error:
            load(path)
        assert f"format {FORMAT_VERSION + 1}" in one_sentence(error, path)


def test_a_checkpoint_of_ours_without_a_network(tmp_path):
    path = tmp_path / "net.tar"
    save_checkpoint(path, checkpoint(classifier=Encoder("small").state_dict()))
    with pytest.raises(CheckpointError) as error:
        load_network(path)
    assert "no HoVer-Net yet" in one_sentence(error, path)


def test_entries_that_are_missing_or_unknown(tmp_path):
    path = tmp_path / "net.tar"
    for content in ({"recipe": {}, "surprise": 1}, {"recipe": "small"}, {}):
        torch.save({"format": "hovernet-cyclic", "format_version": 1, **content}, path)
        with pytest.raises(CheckpointError) as error:
            load_checkpoint(path)
        one_sentence(error, path)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (lambda own: {"fc.weight": torch.zeros(2)}, "not the weights of a HoVer-Net"),
        (lambda own: {name: value for name, value in own.items() if not name.startswith("e1.")}, r"lacks 'e1\."),
        (lambda own: {**own, "extra.weight": torch.zeros(1)}, "unknown 'extra.weight'"),
        (lambda own: {**own, "stem.conv.weight": torch.zeros(8, 3, 3, 3)}, "another shape"),
        (lambda own: {**own, "decoder.tp.head.weight": torch.zeros(())}, "unknown 'decoder.tp"),
        (lambda own: {**own, "decoder.tp.head.weight": torch.zeros(18, 32, 3, 3)}, "another shape"),
        (lambda own: {**own, "e1.0.bn1.bias": torch.full((64,), float("nan"))}, r"'e1\.0\.bn1\.bias' holds nan"),
        (lambda own: {**own, "e1.0.bn1.bias": torch.full((64,), float("inf"))}, "infinity"),
        (lambda own: {**own, "e1.0.bn1.bias": torch.zeros(64).to_sparse()}, "lacks 'e1.0.bn1.bias'"),
        (lambda own: {**own, "e1.0.bn1.bias": torch.zeros(64, device="meta")}, "lacks 'e1.0.bn1.bias'"),
        (
            lambda own: {"conv0./.weight": torch.zeros(1), "decoder.np.u3.conva.weight": torch.tensor(3.0)},
            "not the weights",
        ),
        (lambda own: None, "'desc' holds no weights"),
        (lambda own: {}, "not the weights of a HoVer-Net"),
        (lambda own: {("a", 1): torch.zeros(2)}, "not the weights of a HoVer-Net"),
    ],
)
def test_weights_of_another_network(tmp_path, small, weights, reason):
    path = tmp_path / "net.tar"
    torch.save({"desc": weights(small.state_dict())}, path)
    with pytest.raises(CheckpointError, match=reason) as error:
        load_network(path)
    one_sentence(error, path)


def test_another_format_is_not_our_checkpoint(tmp_path, small):
    torch.save({"desc": small.state_dict()}, tmp_path / "net.tar")
    with pytest.raises(CheckpointError, match="not a checkpoint of hovernet-cyclic"):
        load_checkpoint(tmp_path / "net.tar")

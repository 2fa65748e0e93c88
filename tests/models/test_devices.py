import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hovernet_cyclic.core.errors import RecipeError
from models import devices
from models.devices import Device, choose_device, choose_devices

ROOT = Path(__file__).parents[2]


@pytest.fixture
def machine(monkeypatch):
    """machine(gpus, bf16): as if this machine had so many GPUs, and processors that multiply bfloat16 or do not."""

    def pretend(gpus=0, bf16=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bf16})

    return pretend


@pytest.mark.parametrize(
    ("gpus", "asked", "taken"),
    [
        (0, None, "cpu"),
        (2, None, "cuda:0"),
        (2, "cpu", "cpu"),
        (2, "1", "cuda:1"),
    ],
)
def test_the_device_that_is_asked_for(machine, gpus, asked, taken):
    machine(gpus)
    assert str(choose_device(asked).torch_device) == taken


def test_of_several_the_first_is_taken_and_said(machine, capsys):
    machine(gpus=3)
    assert choose_device("2,0").torch_device == torch.device("cuda", 2)
    assert "takes 2" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gpus", "asked", "words"),
    [
        (0, "0", "no GPU that torch can use: give --gpu=cpu"),
        (2, "2", "has 2 GPUs: use ids below 2"),
        (2, "0,", "--gpu=0,: give numbers"),
        (2, "", "--gpu=: give numbers"),
        (2, "-1", "--gpu=-1: give numbers"),
        (2, "all", "--gpu=all: give numbers"),
        (2, "\u0661", "give numbers"),
    ],
)
def test_other_gpus_are_refused_in_one_sentence(machine, gpus, asked, words):
    machine(gpus)
    with pytest.raises(RecipeError) as caught:
        choose_device(asked)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("gpu", ["cpu", "0"])
@pytest.mark.parametrize(
    ("precision", "bf16", "dtype"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float32),
        ("fp32", True, torch.float32),
        ("bf16", False, torch.bfloat16),
    ],
)
def test_precision_is_what_is_asked_or_what_the_device_does_well(machine, gpu, precision, bf16, dtype):
    machine(1, bf16)
    assert choose_device(gpu, precision).dtype == dtype


def test_another_precision_is_refused(machine):
    machine()
    with pytest.raises(RecipeError, match=r"--precision=fp8: use one of auto, fp32, bf16\."):
        choose_device("cpu", "fp8")


def test_autocast_is_on_for_bfloat16_alone():
    layer, images = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for dtype in (torch.float32, torch.bfloat16):
        with Device(torch.device("cpu"), dtype).autocast():
            assert layer(images).dtype == dtype


def test_images_are_channels_first_in_shape_and_last_in_memory():
    images = np.random.default_rng(0).random((2, 4, 5, 3), dtype=np.float32)
    tensor = Device(torch.device("cpu"), torch.float32).images(images)
    np.testing.assert_array_equal(tensor.permute(0, 2, 3, 1), images)
    assert tensor.shape == (2, 3, 4, 5) and tensor.is_contiguous(memory_format=torch.channels_last)


def test_every_precision_of_the_help_is_understood(machine):
    machine()
    assert [choose_device("cpu", name).dtype for name in devices.PRECISIONS][1:] == [torch.float32, torch.bfloat16]


def test_several_devices_are_each_taken_once(machine):
    machine(gpus=3)
    assert [str(device.torch_device) for device in choose_devices("2,0,2")] == ["cuda:2", "cuda:0"]
    assert [str(device.torch_device) for device in choose_devices(None)] == ["cuda:0"]
    assert [str(device.torch_device) for device in choose_devices("cpu")] == ["cpu"]


def test_free_memory_is_what_the_machine_and_its_container_leave(monkeypatch, tmp_path):
    free = devices.free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    group = {"memory.max": "1000\n", "memory.current": "900\n", "memory.stat": "anon 5\nfile 300\n"}
    for name, text in group.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(devices, "CONTAINER", tmp_path)
    assert free is None or devices.free_memory(torch.device("cpu")) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert free is None or devices.free_memory(torch.device("cpu")) > 400


def test_what_is_an_error_of_memory():
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        assert devices.is_out_of_memory(error)
    assert not devices.is_out_of_memory(RuntimeError("size mismatch"))


def test_freed_memory_can_be_kept_with_the_allocator_of_gnu():
    """In a process of its own, for it is a setting of the whole process."""
    code = "from models.devices import keep_freed_memory\nprint(keep_freed_memory())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(platform.libc_ver()[0] == "glibc")

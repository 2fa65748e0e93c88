"""What the student is charged: by trusted pixels, and by its teacher elsewhere."""

import dataclasses

import numpy as np
import pytest
import torch

from dataloader.train_loader import TileBatch
from hovernet_cyclic.core.settings import BackEndSettings
from hovernet_cyclic.core.types import HoVerTargets
from hovernet_cyclic.training.back_end import back_end_loss, stack_targets, stack_types
from models.ema import EmaTeacher
from models.hovernet.losses import dice
from models.hovernet.net_desc import HoVerNet

SETTINGS = BackEndSettings(consistency_weight=0.1)


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return HoVerNet("small").eval()


def target(trusted, seed=0):
    rng = np.random.default_rng(seed)
    np_map = np.zeros((8, 8), np.int64)
    np_map[2:6, 2:6] = 1
    hv_map = (rng.uniform(-1, 1, (8, 8, 2)) * np_map[..., None]).astype(np.float32)
    return HoVerTargets(np_map, hv_map, None, trusted)


def batch(*targets, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (len(targets), 72, 72, 3)).astype(np.float32)
    return TileBatch(images, images[:, ::-1].copy(), list(targets))


def losses(student, shown, cpu, settings=SETTINGS, teacher=None):
    parts = back_end_loss(student, teacher or EmaTeacher(student, 0.99), shown, settings, cpu)
    return {name: float(value.detach()) for name, value in parts.items()}


def test_targets_are_stacked_in_the_networks_layout(cpu):
    one, two = target(np.ones((8, 8), bool)), target(np.zeros((8, 8), bool), seed=1)
    np_map, hv_map, trusted = stack_targets([one, two], cpu)
    assert np_map.shape == trusted.shape == (2, 8, 8) and hv_map.shape == (2, 2, 8, 8)
    assert np_map.dtype == torch.int64 and hv_map.dtype == torch.float32 and trusted.dtype == torch.bool
    np.testing.assert_array_equal(hv_map[1, 0], two.hv_map[..., 0])
    np.testing.assert_array_equal(hv_map[1, 1], two.hv_map[..., 1])


def test_what_is_not_trusted_teaches_nothing_but_agreement(student, cpu):
    nobody = np.zeros((8, 8), bool)
    parts = losses(student, batch(target(nobody)), cpu)
    assert parts["consistency"] > 0
    assert all(value == pytest.approx(0, abs=1e-6) for name, value in parts.items() if name != "consistency")


def test_where_all_is_trusted_the_teacher_has_no_say(student, cpu):
    parts = losses(student, batch(target(np.ones((8, 8), bool))), cpu)
    assert parts["consistency"] == 0 and min(parts["np_bce"], parts["np_dice"], parts["hv_mse"], parts["hv_msge"]) > 0


def test_targets_under_untrusted_pixels_do_not_matter(student, cpu):
    trusted = np.zeros((8, 8), bool)
    trusted[:, :4] = True
    one = target(trusted)
    other = dataclasses.replace(one, np_map=one.np_map.copy(), hv_map=one.hv_map.copy())
    other.np_map[:, 4:] = 1 - other.np_map[:, 4:]
    other.hv_map[:, 7:] = 0.5  # further away than a gradient of trusted pixels sees
    assert losses(student, batch(one), cpu) == pytest.approx(losses(student, batch(other), cpu))


def test_weights_of_the_recipe_are_used(student, cpu):
    trusted = np.zeros((8, 8), bool)
    trusted[2:6, 2:6] = True
    shown = batch(target(trusted))
    once = losses(student, shown, cpu, dataclasses.replace(SETTINGS, hv_weight=1.0, consistency_weight=1.0))
    more = losses(student, shown, cpu, dataclasses.replace(SETTINGS, hv_weight=3.0, consistency_weight=5.0))
    assert more["hv_mse"] == pytest.approx(3 * once["hv_mse"]) and more["hv_msge"] == pytest.approx(3 * once["hv_msge"])
    assert more["consistency"] == pytest.approx(5 * once["consistency"]) and more["np_bce"] == once["np_bce"]
    assert "consistency" not in losses(student, shown, cpu, dataclasses.replace(SETTINGS, consistency_weight=0.0))


def test_distances_are_taught_under_untrusted_background_only_where_the_recipe_says_so(student, cpu):
    trusted = np.zeros((8, 8), bool)
    trusted[:, :4] = True
    shown = batch(target(trusted))
    trusted_only = losses(student, shown, cpu)
    everywhere = losses(student, shown, cpu, dataclasses.replace(SETTINGS, hv_everywhere=True))
    assert everywhere["hv_mse"] != pytest.approx(trusted_only["hv_mse"])
    assert {**everywhere, "hv_mse": 0} == pytest.approx({**trusted_only, "hv_mse": 0})
    all_trusted = batch(target(np.ones((8, 8), bool)))
    same = losses(student, all_trusted, cpu, dataclasses.replace(SETTINGS, hv_everywhere=True))
    assert same == pytest.approx(losses(student, all_trusted, cpu))


def test_the_teacher_sees_the_plain_image_and_learns_nothing(student, cpu):
    shown = batch(target(np.zeros((8, 8), bool)))
    teacher = EmaTeacher(student, 0.99)
    same = losses(student, shown._replace(plain_images=shown.images), cpu, teacher=teacher)
    assert same["consistency"] == pytest.approx(0, abs=1e-9) and losses(student, shown, cpu)["consistency"] > 1e-6
    parts = back_end_loss(student, teacher, shown, SETTINGS, cpu)
    parts["consistency"].backward()
    assert all(parameter.grad is None for parameter in teacher.module.parameters())
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in student.parameters())
    student.zero_grad(set_to_none=True)


@pytest.fixture(scope="module")
def typed_student():
    torch.manual_seed(0)
    return HoVerNet("small", 4).eval()


def typed(trusted=None, kind=2, seed=0):
    one = target(np.ones((8, 8), bool) if trusted is None else trusted, seed)
    return dataclasses.replace(one, type_map=one.np_map * kind)


def test_types_are_known_on_trusted_pixels_of_typed_targets_alone(cpu):
    half = np.zeros((8, 8), bool)
    half[:, :4] = True
    untold = typed(kind=0)  # nuclei that the type map leaves out are of some type all the same
    type_map, known = stack_types([typed(half), target(np.ones((8, 8), bool)), untold], cpu)
    assert type_map.dtype == torch.int64 and known.dtype == torch.bool and type_map.shape == known.shape == (3, 8, 8)
    np.testing.assert_array_equal(known[0], half)
    assert not known[1].any() and int(type_map.max()) == 2
    np.testing.assert_array_equal(known[2], untold.np_map == 0)


def test_types_are_charged_bce_and_dice_with_weight_one(typed_student, cpu):
    shown = batch(typed(), typed(seed=1))
    parts = losses(typed_student, shown, cpu)
    type_map, known = stack_types(shown.targets, cpu)
    with torch.no_grad():
        logits = typed_student(cpu.images(shown.images)).tp
    assert parts["tp_bce"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, type_map)), rel=1e-4)
    assert parts["tp_dice"] == pytest.approx(float(dice(logits, type_map, known)), rel=1e-4) and parts["tp_dice"] > 0


def test_targets_without_types_say_nothing_about_them(typed_student, cpu):
    everywhere = np.ones((8, 8), bool)
    parts = losses(typed_student, batch(target(everywhere)), cpu)
    assert parts["tp_bce"] == parts["tp_dice"] == 0 and parts["np_bce"] > 0
    beside = losses(typed_student, batch(typed(), target(everywhere)), cpu)
    assert beside["tp_bce"] == pytest.approx(losses(typed_student, batch(typed()), cpu)["tp_bce"], rel=0.2)
    assert "tp_bce" not in losses(HoVerNet("small").eval(), batch(typed()), cpu)

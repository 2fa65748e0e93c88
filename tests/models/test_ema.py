import copy

import pytest
import torch
from torch import nn

from models.ema import EmaTeacher


def student_of(value):
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1))
    for parameter in net.parameters():
        nn.init.constant_(parameter, value)
    return net


def test_the_teacher_starts_as_a_frozen_copy():
    student = student_of(2.0)
    teacher = EmaTeacher(student, 0.99)
    assert not teacher.module.training and student.training
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    nn.init.constant_(student[0].weight, 5.0)
    assert float(teacher.module[0].weight) == 2.0


def test_updates_by_hand():
    """0, then towards 1 with decays 1/10, 2/11 and the given 0.15."""
    student = student_of(0.0)
    teacher = EmaTeacher(student, 0.15)
    nn.init.constant_(student[0].weight, 1.0)
    expected = 0.0
    for decay in (1 / 10, 0.15, 0.15):
        teacher.update(student)
        expected = decay * expected + (1 - decay)
        assert float(teacher.module[0].weight) == pytest.approx(expected, rel=1e-6)


def test_warm_up_ends_at_the_decay():
    student = student_of(0.0)
    teacher = EmaTeacher(student, 0.5)
    for _ in range(9):  # (1 + 8) / (10 + 8) is the given decay
        teacher.update(student)
    nn.init.constant_(student[0].weight, 1.0)
    teacher.update(student)
    assert float(teacher.module[0].weight) == pytest.approx(0.5)


def test_buffers_are_taken_over_and_gradients_left_out():
    student = student_of(1.0)
    teacher = EmaTeacher(student, 0.9)
    student(torch.full((4, 1, 2, 2), 8.0)).sum().backward()
    before = copy.deepcopy(student.state_dict())
    teacher.update(student)
    for name, buffer in student.named_buffers():
        assert torch.equal(buffer, teacher.module.get_buffer(name))
    assert float(teacher.module[1].running_mean) != 0
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in teacher.module.parameters())

"""Teacher and student: the teacher solves the task exactly in every dtype, and both start from the same numbers."""

import pytest
import torch

from narrowcast.errors import InputError
from narrowcast.workloads.teacher_student import TeacherStudent, network

TASK = TeacherStudent((3, 7, 5, 2), scale=2.0, ratio=4.0, seed=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_teacher_answers_without_error(dtype):
    answer = network([w.to(dtype) for w in TASK.teacher()], TASK.inputs().to(dtype))
    assert torch.equal(answer, TASK.targets(dtype))


def test_every_number_is_a_float32():
    for w in (TASK.inputs(), *TASK.teacher(), *TASK.start()):
        assert torch.equal(w, w.float().double())


def test_sizes():
    assert TASK.parameters == 3 * 7 + 7 + 7 * 5 + 5 + 5 * 2 + 2 == sum(w.numel() for w in TASK.start())
    assert TASK.samples * TASK.widths[-1] == pytest.approx(TASK.ratio * TASK.parameters, abs=TASK.widths[-1])
    assert TASK.targets().shape == (TASK.samples, 2)


def test_the_network_is_torchs_and_takes_many_at_once():
    layers = torch.nn.Sequential(torch.nn.Linear(3, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2)).double()
    weights = [p.detach().T if p.dim() == 2 else p.detach() for p in layers.parameters()]
    x = TASK.inputs()
    assert torch.allclose(network(weights, x), layers(x), rtol=1e-14, atol=1e-14)
    many = [torch.stack([w, 2 * w]) for w in weights]
    assert torch.allclose(network(many, x)[1], network([2 * w for w in weights], x), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("wrong", [{"widths": (3, 2)}, {"widths": (3, 4, 2), "ratio": 1.0}])
def test_a_wrong_task_is_named(wrong):
    with pytest.raises(InputError, match="expected"):
        TeacherStudent(**wrong)

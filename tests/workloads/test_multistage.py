"""Multi-stage networks: the Jacobian against autograd, least squares against scipy, and stages that each improve."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from scipy.optimize import least_squares

from narrowcast.errors import InputError
from narrowcast.workloads.least_squares import levenberg_marquardt
from narrowcast.workloads.multistage import Network, Plan, evaluate, fit, frequency, residue

SMALL = Plan(width=10, points=400, draws=1, steps=25)


def f(x):
    return torch.sin(2 * x + 1) + 0.2 * torch.exp(1.3 * x)


@cache
def fitted():
    return fit(f, 3, SMALL)


@pytest.mark.parametrize("network", [Network(4, 2), Network(3, 3, kappa=7.0, sine=True)], ids=["tanh", "sine"])
def test_the_jacobian_is_autograds(network):
    v, x = network.draw(1), torch.linspace(-1, 1, 9, dtype=torch.float64)
    values, jacobian = network(v, x, True)
    expected = torch.autograd.functional.jacobian(lambda p: network(p, x)[0], v)
    assert torch.allclose(jacobian, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(values, network(v, x)[0])


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 3.0], dtype=torch.float64)], ids=["running", "given"])
def test_least_squares_finds_scipys_minimum(weight):
    x = torch.linspace(0, 2, 30, dtype=torch.float64)
    target = 2 * torch.exp(-1.5 * x) + 0.1 * torch.sin(9 * x)

    def model(v, wanted):
        decay = torch.exp(-v[1] * x)
        return v[0] * decay, torch.stack([decay, -v[0] * x * decay], 1)

    start = torch.ones(2, dtype=torch.float64)
    ours = levenberg_marquardt(model, start, target, 100, weight=weight)
    theirs = least_squares(lambda v: (model(torch.from_numpy(v), False)[0] - target).numpy(), start.numpy(), xtol=1e-15)
    assert ours.unknowns.tolist() == pytest.approx(theirs.x.tolist(), rel=1e-7)
    assert ours.rms == pytest.approx(math.sqrt(2 * theirs.cost / len(x)), rel=1e-12)


def test_least_squares_stops_at_its_goal():
    half = levenberg_marquardt(
        lambda v, wanted: (v, torch.eye(3).double()), torch.ones(3).double(), torch.zeros(3).double(), 99, goal=0.5
    )
    assert half.steps == 1  # one barely damped step solves a linear problem
    assert levenberg_marquardt(lambda v, w: (v, v), torch.ones(3), torch.ones(3), 9).steps == 0


def test_frequencies_of_a_tone_and_of_two():
    x = torch.linspace(-1, 1, 4096, dtype=torch.float64)
    tone = torch.sin(2 * math.pi * 7 * x)
    assert frequency(tone, 2.0, share=0) == 7
    assert 2 * math.pi * frequency(tone, 2.0, share=0) == pytest.approx(43.98, abs=0.01)  # sheet 73
    faint = tone + 0.5 * torch.sin(2 * math.pi * 40 * x)  # a fifth of the energy
    assert frequency(faint, 2.0, share=0) == 7
    assert frequency(faint, 2.0, share=0.9) == pytest.approx(40, abs=0.5)
    assert frequency(torch.ones(64), 2.0, share=0) == 0.5  # no less than one cycle in the interval


def test_each_stage_improves_and_later_ones_oscillate_faster():
    stages = fitted()
    x = torch.linspace(-1, 1, 5001, dtype=torch.float64)
    errors = [float((f(x) - evaluate(stages[:k], x)).abs().max()) for k in range(4)]
    for before, after in pairwise(errors):
        assert after < before / 30
    assert errors[-1] < 1e-7
    assert stages[0].network == Network(10)
    assert all(stage.network.sine and stage.network.kappa == 6 * math.pi * stage.frequency for stage in stages[1:])


def test_the_sum_of_the_stages_is_the_prediction_and_earlier_stages_are_frozen():
    stages = fitted()
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)
    assert torch.equal(evaluate(stages, x), evaluate(stages[:2], x) + stages[2](x))
    shorter = fit(f, 3, SMALL)
    assert all(torch.equal(a.parameters, b.parameters) for a, b in zip(stages, shorter, strict=True))
    assert stages[2].magnitude == float(residue(f, stages[:2], SMALL, 1.0, 400).abs().max()) / 2


def test_float32_throughout_ends_at_its_rounding():
    plan = Plan(width=10, points=400, draws=1, steps=25, dtypes=(torch.float32,), residue=torch.float32)
    stages = fit(f, 3, plan)
    x = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    error = float((f(x) - evaluate(stages, x.float()).double()).abs().max())
    assert 2.0**-24 < error < 3e-6


@pytest.mark.parametrize("wrong", [{"share": 1.0}, {"margin": -0.1}, {"dtypes": ()}])
def test_a_wrong_plan_is_named(wrong):
    with pytest.raises(InputError, match="share"):
        Plan(**wrong)
    with pytest.raises(InputError, match="stages is 0"):
        fit(f, 0)

"""Conjugate gradient and its line search: quadratics in n steps, scipy's minima, and where low precision ends."""

import pytest
import torch
from scipy.optimize import rosen, rosen_der

from narrowcast.errors import InputError
from narrowcast.optim import ConjugateGradient
from narrowcast.optim.line_search import SLOPES, VALUES, Point, search
from narrowcast.workloads.solvers import conditioned

both_rules = pytest.mark.parametrize("rule", [VALUES, SLOPES], ids=["values", "slopes"])


def quadratic(dtype, n=10, condition=100.0):
    A = conditioned(n, condition).to(dtype)
    b = A @ torch.ones(n, dtype=dtype)
    x = torch.zeros(n, dtype=dtype, requires_grad=True)

    def closure():
        x.grad = None
        loss = 0.5 * (x - 1) @ (A @ (x - 1))
        loss.backward()
        return loss.detach()

    return A, b, x, closure


def rosenbrock(dtype=torch.float64):
    x = torch.tensor([-1.2, 1.0, -0.5, 0.8], dtype=dtype, requires_grad=True)

    def closure():
        x.grad = torch.from_numpy(rosen_der(x.detach().double().numpy())).to(dtype)
        return torch.tensor(rosen(x.detach().double().numpy())).to(dtype)

    return x, closure


def run(optimizer, closure, steps):
    losses = [optimizer.step(closure) for _ in range(steps) if not optimizer.finished]
    assert losses
    return losses


@both_rules
@pytest.mark.parametrize("guess", [1e-6, 0.3, 1e3])
@pytest.mark.parametrize("shape", [lambda a: (a - 1) ** 4 + (a - 1) ** 2, lambda a: -a / (a * a + 2), lambda a: (a + 0.004) ** 5 - 2 * (a + 0.004) ** 4],
                         ids=["quartic", "rational", "quintic"])  # fmt: skip
def test_a_line_search_satisfies_wolfes_conditions(rule, guess, shape):
    def at(step):
        a = torch.tensor(step, dtype=torch.float64, requires_grad=True)
        value = shape(a)
        return Point(step, float(value.detach()), float(torch.autograd.grad(value, a)[0]))

    start = at(0.0)
    found = search(at, start, guess, rule, limit=40)
    assert found is not None
    assert found.value < start.value
    assert abs(found.slope) <= -0.1 * start.slope
    if rule is VALUES:
        assert found.value <= start.value + 1e-4 * found.step * start.slope


def test_a_line_search_backs_out_of_infinity_and_says_when_there_is_nothing():
    def steep(step):
        value = 1e300 * step**4 * 1e300 if step > 1e-3 else (step - 5e-4) ** 2
        return Point(step, value, 2 * (step - 5e-4))

    found = search(steep, steep(0.0), 1.0, limit=60)
    assert found is not None and found.step == pytest.approx(5e-4, rel=0.2)
    flat = lambda step: Point(step, 1.0, -1e-9)  # noqa: E731 - values that no longer change
    assert search(flat, flat(0.0), 1.0) is None


@both_rules
def test_a_quadratic_takes_n_steps_in_float64_and_stalls_in_float32(rule):
    residuals = {}
    for dtype in (torch.float64, torch.float32):
        A, b, x, closure = quadratic(dtype)
        optimizer = ConjugateGradient([x], rule=rule)
        run(optimizer, closure, 40)
        residuals[dtype] = float((A @ x.detach() - b).norm() / b.norm())
    assert residuals[torch.float64] < 1e-11
    assert 1e-9 < residuals[torch.float32] < 100 * 2.0**-24 * 10


@both_rules
def test_it_minimizes_rosenbrocks_function_monotonically(rule):
    x, closure = rosenbrock()
    optimizer = ConjugateGradient([x], rule=rule)
    losses = run(optimizer, closure, 150)
    assert torch.allclose(x.detach(), torch.ones(4, dtype=torch.float64), atol=1e-6)
    if rule is VALUES:
        assert losses == sorted(losses, reverse=True)


def test_it_finishes_where_no_line_search_improves():
    _, _, x, closure = quadratic(torch.float32)
    optimizer = ConjugateGradient([x])
    run(optimizer, closure, 1000)
    assert optimizer.finished
    before, count = x.detach().clone(), optimizer.evaluations
    assert optimizer.step(closure) == optimizer.step(closure)
    assert torch.equal(x.detach(), before) and optimizer.evaluations == count


def test_it_starts_at_a_minimum():
    x = torch.zeros(3, requires_grad=True)

    def closure():
        x.grad = None
        loss = (x * x).sum()
        loss.backward()
        return loss

    optimizer = ConjugateGradient([x])
    assert optimizer.step(closure) == 0.0
    assert optimizer.finished and optimizer.evaluations == 1


def test_bad_input_is_named():
    x, y = torch.ones(2, requires_grad=True), torch.ones(2, dtype=torch.float64, requires_grad=True)
    with pytest.raises(InputError, match="2 dtypes"):
        ConjugateGradient([x, y])
    with pytest.raises(InputError, match="2 parameter groups"):
        ConjugateGradient([{"params": [x]}, {"params": [y]}])
    with pytest.raises(InputError, match="has no gradient"):
        ConjugateGradient([x]).step(lambda: torch.tensor(1.0))

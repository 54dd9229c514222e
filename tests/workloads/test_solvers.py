"""Solvers in float64 against torch.linalg and known convergence; with rounding inside, against the theory's bounds."""

from itertools import islice, pairwise

import pytest
import torch
from scipy.sparse.linalg import cg

import narrowcast as nc
from narrowcast.errors import InputError
from narrowcast.workloads.solvers import (
    conditioned,
    conjugate_gradient,
    exact,
    gauss_seidel,
    history,
    jacobi,
    lu,
    lu_solve,
    poisson,
    power_iteration,
    refinement,
)

N = 24
UNIT = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "tf32": 2.0**-11}


def to(name):
    return lambda x: nc.round(x, name)


def system(condition=100.0, symmetric=True):
    A = conditioned(N, condition, seed=1, symmetric=symmetric)
    return A, torch.randn(N, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def last(iterates, count):
    *_, x = islice(iterates, count)
    return x


def test_the_made_matrices_have_the_spectrum_they_promise():
    for symmetric in (True, False):
        A = conditioned(N, 1e4, symmetric=symmetric)
        spectrum = torch.linalg.svdvals(A)
        assert torch.allclose(spectrum[[0, -1]], torch.tensor([1.0, 1e-4], dtype=torch.float64), rtol=1e-10)
    side = 6
    lowest = 2 - 2 * torch.cos(torch.tensor(torch.pi / (side + 1), dtype=torch.float64))
    for dimensions in (1, 2):
        found = torch.linalg.eigvalsh(poisson(side, dimensions))[0]
        assert torch.allclose(found, dimensions * lowest)


def test_conjugate_gradient_takes_scipys_steps():
    A, b = system()
    theirs = []
    cg(A.numpy(), b.numpy(), maxiter=15, rtol=0, callback=lambda x: theirs.append(torch.from_numpy(x.copy())))
    for ours, other in zip(islice(conjugate_gradient(A, b), 15), theirs, strict=True):
        assert torch.allclose(ours, other, rtol=1e-7, atol=1e-9)


def test_conjugate_gradient_beats_its_bound():
    A, b = system()
    solution = torch.linalg.solve(A, b)
    errors = [float((d := x - solution) @ (A @ d)) ** 0.5 for x in islice(conjugate_gradient(A, b), 40)]
    start, root = float(solution @ (A @ solution)) ** 0.5, 10.0  # the square root of the condition
    for k, error in enumerate(errors, 1):
        assert error <= 2 * ((root - 1) / (root + 1)) ** k * start + 1e-12  # Golub and Van Loan, 11.3.3
    assert errors[-1] < 1e-12 * start
    warm = last(conjugate_gradient(A, b, start=solution + 1e-3), 40)
    assert torch.allclose(warm, solution, rtol=1e-10)


def test_conjugate_gradient_on_k_distinct_eigenvalues_takes_k_steps():
    A = torch.diag(torch.tensor([1.0, 2.0, 4.0] * 8, dtype=torch.float64))
    assert history(A, torch.ones(N, dtype=torch.float64), conjugate_gradient(A, torch.ones(N).double()), 9)[2] < 1e-14


def test_stationary_solvers_reach_the_solution_and_gauss_seidel_needs_half_the_sweeps():
    A = poisson(N, 1)
    b = torch.ones(N, dtype=torch.float64)
    solution = torch.linalg.solve(A, b)
    found = {name: [float((x - solution).norm()) for x in islice(solver(A, b), 400)] for name, solver in
             (("jacobi", jacobi), ("gauss-seidel", gauss_seidel))}  # fmt: skip
    radius = torch.cos(torch.tensor(torch.pi / (N + 1))).item()  # of Jacobi's iteration; Gauss-Seidel's is its square
    for name, rate in (("jacobi", radius), ("gauss-seidel", radius**2)):
        errors = found[name]
        assert (errors[399] / errors[199]) ** (1 / 200) == pytest.approx(rate, rel=1e-4)


def test_gauss_seidel_is_the_triangular_solve():
    A, b = system()
    x = last(gauss_seidel(A, b), 1)
    assert torch.allclose(x, torch.linalg.solve_triangular(A.tril(), b[:, None], upper=False)[:, 0])


def test_power_iteration_finds_the_largest_eigenvalue():
    A, b = system()
    value, vector = last(power_iteration(A, b), 300)
    assert value.item() == pytest.approx(1.0, rel=1e-12)
    assert torch.allclose(A @ vector, vector, atol=1e-7)


def test_lu_is_torch_linalgs():
    A, b = system(symmetric=False)
    packed, order = lu(A)
    reference, _ = torch.linalg.lu_factor(A)
    assert torch.allclose(packed, reference)
    eye = torch.eye(N, dtype=torch.float64)
    assert torch.allclose((packed.tril(-1) + eye) @ packed.triu(), A[order])
    assert torch.allclose(lu_solve((packed, order), b), torch.linalg.solve(A, b))


@pytest.mark.parametrize("name", UNIT)
def test_rounded_lu_obeys_the_backward_bound(name):
    A, _ = system(symmetric=False)
    packed, order = lu(A, to(name))
    lower, upper = packed.tril(-1) + torch.eye(N).double(), packed.triu()
    error = (lower @ upper - nc.round(A, name)[order]).abs()
    # Higham, "Accuracy and Stability", theorem 9.3 with a product and a difference rounded at each of n steps
    bound = 2 * N * UNIT[name] / (1 - 2 * N * UNIT[name]) * (lower.abs() @ upper.abs())
    assert (error <= bound).all()
    assert error.max() > UNIT[name] * 1e-2


@pytest.mark.parametrize("name", UNIT)
def test_refinement_lifts_a_low_precision_factorization_to_float64(name):
    A, b = system(condition=20.0, symmetric=False)
    residuals = history(A, b, refinement(A, b, to(name)), 40)
    assert residuals[0] > 1e-4
    assert residuals[-1] < 1e-14
    for before, after in pairwise(residuals):
        assert after < before / 2 or after < 1e-14  # linear convergence, at a rate of about condition * unit roundoff


def test_without_a_wide_residual_refinement_stays_at_the_narrow_unit_roundoff():
    A, b = system(condition=20.0, symmetric=False)
    half = to("float16")
    residuals = history(A, b, refinement(A, b, half, half, half), 20)
    assert UNIT["float16"] / 20 < min(residuals) < 20 * UNIT["float16"]


def test_rounding_leaves_only_numbers_of_the_format():
    A, b = (t.float() for t in system())
    A, b = nc.round(A, "bfloat16"), nc.round(b, "bfloat16")
    for solver in (conjugate_gradient, jacobi, gauss_seidel):
        x = last(solver(A, b, to("bfloat16")), 5)
        assert torch.equal(nc.round(x, "bfloat16"), x)


@pytest.mark.parametrize("name", ["bfloat16", "e4m3fn", "posit16_1"])
@pytest.mark.parametrize("solver", [conjugate_gradient, jacobi, gauss_seidel, power_iteration])
def test_all_operations_rounded_from_outside_give_the_same_iterates(solver, name):
    A, b = (nc.round(t.float(), name) for t in system())
    inside = list(islice(solver(A, b, rounding=to(name)), 5))
    with nc.arithmetic(name):
        outside = list(islice(solver(A, b), 5))
    assert len(inside) == len(outside) > 0
    for x, y in zip(inside, outside, strict=True):
        assert all(map(torch.equal, x, y)) if isinstance(x, tuple) else torch.equal(x, y)


def test_conjugate_gradient_stagnates_where_the_format_ends():
    A, b = system()
    floors = [min(history(A, b, conjugate_gradient(A, b, r), 200)) for r in (to("bfloat16"), to("float16"), exact)]
    assert floors[0] > floors[1] > 1e-6
    assert floors[2] < 1e-12


def test_it_stops_on_breakdown():
    b = torch.ones(3, dtype=torch.float64)
    indefinite = torch.diag(torch.tensor([1.0, -1.0, -5.0], dtype=torch.float64))
    assert list(conjugate_gradient(indefinite, b)) == []
    assert list(power_iteration(torch.zeros(3, 3).double(), b)) == []
    assert len(list(conjugate_gradient(torch.eye(3).double(), b))) == 1  # the residual is zero then


@pytest.mark.parametrize(
    ("A", "b", "words"),
    [
        (torch.ones(2, 3), torch.ones(2), r"\[2, 3\]"), (torch.ones(2, 2), torch.ones(3), r"\[3\]"),
        (torch.ones(2, 2), torch.ones(2).double(), "float64"),
    ],
)  # fmt: skip
def test_a_wrong_system_is_named(A, b, words):
    with pytest.raises(InputError, match=words):
        next(jacobi(A, b))


def test_a_singular_matrix_is_named():
    with pytest.raises(InputError, match="pivot 0 of 2 is 0"):
        lu(torch.zeros(2, 2))

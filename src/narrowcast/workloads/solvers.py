"""Iterative solvers with rounding inside: what a number system does to numerical analysis.

Each solver is plain PyTorch on the tensors' own dtype and passes the result of every single operation (a sum, a
product, a quotient, one matrix-vector product) through ``rounding``, any function of a tensor that returns a tensor
of the same dtype. With the default, `exact`, nothing is rounded but by the dtype itself, and a caller that has all
operations rounded from outside gets the same iterates. A matrix-vector or inner product is one operation: its sum is
kept in the tensors' dtype and rounded at the end, as a wide accumulator does.

The iterative ones are generators of iterates, so that the caller measures them as it likes, outside the rounding:

    for x in conjugate_gradient(A, b, rounding): error = (b.double() - A.double() @ x.double()).norm()

They never end by a tolerance, only by breakdown (a step that is not a positive finite number): take what you need
with `itertools.islice`, or use `history`.

Sources: Hestenes and Stiefel 1952 (conjugate gradient); Golub and Van Loan, "Matrix Computations", 4th ed., 3.4, 8.2,
11.2; Carson and Higham, "Accelerating the solution of linear systems by iterative refinement in three precisions",
2018 (refinement).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from narrowcast.errors import InputError

Rounding = Callable[[Tensor], Tensor]


def exact(x: Tensor) -> Tensor:
    """Return ``x``: no rounding beyond that of its dtype."""
    return x


def conjugate_gradient(
    A: Tensor, b: Tensor, rounding: Rounding = exact, start: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield x_1, x_2, ... towards ``A x = b``; ``A`` [n, n] symmetric positive definite, ``b`` [n].

    In exact arithmetic the n-th iterate is the solution. Ends on breakdown: a curvature or residual that is zero,
    negative or not finite.
    """
    _system(A, b)
    r = rounding
    x = torch.zeros_like(b) if start is None else start
    residual = b if start is None else r(b - r(A @ x))
    direction, square = residual, r(residual @ residual)
    while _positive(square):
        image = r(A @ direction)
        curvature = r(direction @ image)
        if not _positive(curvature):
            return
        step = r(square / curvature)
        x = r(x + r(step * direction))
        yield x
        residual = r(residual - r(step * image))
        before, square = square, r(residual @ residual)
        direction = r(residual + r(r(square / before) * direction))


def jacobi(A: Tensor, b: Tensor, rounding: Rounding = exact, start: Tensor | None = None) -> Iterator[Tensor]:
    """Yield Jacobi's iterates; converges where ``A`` [n, n] is strictly diagonally dominant."""
    _system(A, b)
    r = rounding
    diagonal = A.diagonal()
    rest = A - torch.diag(diagonal)  # copies of A's own numbers and zeros: nothing to round
    x = torch.zeros_like(b) if start is None else start
    while True:
        x = r(r(b - r(rest @ x)) / diagonal)
        yield x


def gauss_seidel(A: Tensor, b: Tensor, rounding: Rounding = exact, start: Tensor | None = None) -> Iterator[Tensor]:
    """Yield Gauss and Seidel's iterates, each a sweep over the unknowns in order."""
    _system(A, b)
    r = rounding
    diagonal = A.diagonal()
    below, above = A.tril(-1), A.triu(1)
    x = torch.zeros_like(b) if start is None else start
    while True:
        right = r(b - r(above @ x))
        x = _substitute(below, right, range(len(b)), r, diagonal)
        yield x


def power_iteration(A: Tensor, start: Tensor, rounding: Rounding = exact) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (Rayleigh quotient 0-d, unit vector [n]) towards the eigenvalue of ``A`` [n, n] of largest magnitude."""
    _system(A, start)
    r = rounding
    vector = r(start / r(torch.sqrt(r(start @ start))))
    while True:
        image = r(A @ vector)
        value, square = r(vector @ image), r(image @ image)
        if not _positive(square):
            return
        vector = r(image / r(torch.sqrt(square)))
        yield value, vector


def lu(A: Tensor, rounding: Rounding = exact) -> tuple[Tensor, Tensor]:
    """Return (L below the diagonal and U on and above it [n, n], row order int64 [n]); partial pivoting.

    ``A[order] ~ L @ U``. The entries of ``A`` are rounded first. Raises InputError where a pivot is zero or not
    finite.
    """
    r = rounding
    A, order = r(A), torch.arange(len(A))
    for k in range(len(A) - 1):
        pivot = k + int(A[k:, k].abs().argmax())
        if not _positive(A[pivot, k].abs()):
            raise InputError(f"LU: pivot {k} of {len(A)} is {A[pivot, k].item()}; the rounded matrix is singular")
        swap = _exchange(len(A), k, pivot)
        A, order = A[swap], order[swap]
        factors = r(A[k + 1 :, k] / A[k, k])
        block = r(A[k + 1 :, k + 1 :] - r(factors[:, None] * A[k, k + 1 :]))
        lower = torch.cat([factors[:, None], block], 1)
        A = torch.cat([A[: k + 1], torch.cat([A[k + 1 :, :k], lower], 1)])
    return A, order


def lu_solve(factors: tuple[Tensor, Tensor], b: Tensor, rounding: Rounding = exact) -> Tensor:
    """Return x [n] with ``L U x = b[order]``, by two substitutions."""
    LU, order = factors
    r = rounding
    y = _substitute(LU.tril(-1), r(b)[order], range(len(b)), r, None)
    return _substitute(LU.triu(1), y, range(len(b) - 1, -1, -1), r, LU.diagonal())


def refinement(
    A: Tensor, b: Tensor, factorize: Rounding, working: Rounding = exact, residual: Rounding = exact
) -> Iterator[Tensor]:
    """Yield x_0, x_1, ...: a solution by LU in low precision, then its corrections.

    Args:
        A, b: the system, [n, n] and [n].
        factorize: rounding of the factorization and of the triangular solves (the lowest precision).
        working: rounding of the solution and its update.
        residual: rounding of ``b - A x`` (the highest precision).

    The correction's right-hand side is divided by its largest magnitude before the narrow solve and the result
    multiplied by it, so that the range of the narrow format does not limit how small a residual can be.
    """
    _system(A, b)
    factors = lu(A, factorize)
    x = torch.zeros_like(b)
    left = b
    while True:
        size = left.abs().max()
        if not _positive(size):
            return
        correction = lu_solve(factors, factorize(left / size), factorize)
        x = working(x + working(size * correction))
        yield x
        left = residual(b - residual(A @ x))


def history(A: Tensor, b: Tensor, iterates: Iterable[Tensor], count: int) -> list[float]:
    """Return ``|b - A x| / |b|`` in float64 of the first ``count`` iterates; fewer where they end sooner."""
    wide, right = A.double(), b.double()
    norm = right.norm()
    return [float((right - wide @ x.double()).norm() / norm) for x in islice(iterates, count)]


def poisson(side: int, dimensions: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the matrix of -u'' by second differences on a grid of ``side`` points a dimension: small integers.

    Symmetric positive definite, [side**dimensions] squared; its condition is about (2 (side + 1) / pi)^2.
    """
    line = 2 * torch.eye(side, dtype=dtype) - torch.ones(side, side, dtype=dtype).triu(1).tril(1)
    line = line - torch.ones(side, side, dtype=dtype).tril(-1).triu(-1)
    A = line
    for _ in range(dimensions - 1):
        A = torch.kron(A, torch.eye(side, dtype=dtype)) + torch.kron(torch.eye(len(A), dtype=dtype), line)
    return A


def conditioned(n: int, condition: float, seed: int = 0, symmetric: bool = True) -> Tensor:
    """Return a float64 [n, n] with 2-norm 1, the given 2-norm condition, and geometrically spaced singular values.

    Symmetric positive definite, or with left and right bases drawn apart. A function of ``seed`` alone.
    """
    if condition < 1:
        raise InputError(f"condition is {condition}; expected at least 1")
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for _ in range(2))
    spectrum = torch.logspace(0, -math.log10(condition), n, dtype=torch.float64)
    A: Tensor = (left * spectrum) @ (left if symmetric else right).T
    return (A + A.T) / 2 if symmetric else A


def _substitute(A: Tensor, b: Tensor, order: range, r: Rounding, diagonal: Tensor | None) -> Tensor:
    """Return x with ``(A + diagonal) x = b``, unknowns in ``order``; ``A`` strictly triangular that way round."""
    x = torch.zeros_like(b)
    for i in order:
        value = r(b[i] - r(A[i] @ x))
        x = x.index_put((torch.tensor(i),), value if diagonal is None else r(value / diagonal[i]))
    return x


def _exchange(n: int, i: int, j: int) -> Tensor:
    order = list(range(n))
    order[i], order[j] = j, i
    return torch.tensor(order)


def _positive(value: Tensor) -> bool:
    number = value.item()
    return math.isfinite(number) and number > 0


def _system(A: Tensor, b: Tensor) -> None:
    if A.dim() != 2 or A.shape[0] != A.shape[1] or b.shape != A.shape[:1]:
        raise InputError(f"found matrix {list(A.shape)} and vector {list(b.shape)}; expected [n, n] and [n]")
    if A.dtype != b.dtype:
        raise InputError(f"found a matrix of {A.dtype} and a vector of {b.dtype}; expected one dtype")

"""GPTQ, matrices in and matrices out: round column by column, and let the columns still to come repair the error.

The layer computes ``x w^T``; with ``H = x^T x`` the squared error of its outputs is ``tr((w - q) H (w - q)^T)``.
Rounding column i by an error e changes that least if every later column j moves by ``-e U[i, j] / U[i, i]``, where U is
the upper triangular factor of H's inverse, ``U^T U``. All scales are settled before the first column is touched
(*static groups*), so the columns may come in any order without breaking a microscaling block: largest diag(H) first
(*activation order*).

It runs over any cast: what rounds a column is the cast with its settled scales.
Sources: Frantar et al. 2022 (GPTQ); sheet 42 (static groups, order, damping; Egiazarian et al. 2025).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.ptq.sweep import descend, sweep
from narrowcast.quantize import QTensor, Settled

_ATTEMPTS = 4  # Cholesky factorisations tried, each with ten times the damping of the one before


@dataclass(frozen=True)
class Solver:
    """How GPTQ goes through the columns.

    Attributes:
        damping: added to diag(H), as a share of its mean.
        block: columns whose repairs are gathered before the rest of the matrix is touched (speed only).
        order: take the columns by falling diag(H).
        refine: passes of coordinate descent afterwards (`sweep.descend`), each of which takes as long as GPTQ itself.
    """

    damping: float = 0.01
    block: int = 128
    order: bool = True
    refine: int = 0

    def __post_init__(self) -> None:
        if not (self.damping >= 0 and self.block >= 1 and self.refine >= 0):
            raise InputError(
                f"gptq: expected damping >= 0, block >= 1 and refine >= 0, found {self.damping}, {self.block} and "
                f"{self.refine}"
            )

    def solve(self, weight: Tensor, hessian: Tensor, settled: Settled) -> "Solution":
        """Return what `gptq` finds."""
        return gptq(weight, hessian, settled, self)


@dataclass(frozen=True)
class Solution:
    """What GPTQ found.

    Attributes:
        quantized: codes and scales.
        values: what they decode to, float32 ``[N, K]``.
        damping: the damping that the factorisation needed, as a share of mean(diag H).
        note: what was done instead where something failed, or an empty string.
    """

    quantized: QTensor
    values: Tensor
    damping: float
    note: str = ""


def gptq(weight: Tensor, hessian: Tensor, settled: Settled, solver: Solver | None = None) -> Solution:
    """Quantize ``weight`` under ``settled`` scales so that the layer's outputs change least.

    Args:
        weight: ``[N, K]``, any float dtype, as the cast's transform leaves it.
        hessian: ``x^T x`` over the calibration tokens (any positive multiple), ``[K, K]``.
        settled: the cast with its scales; deterministic rounding.
        solver: damping, block, order.

    Where H cannot be factorised even with a thousandfold damping the weights are rounded to nearest, and the note says
    so.
    Raises InputError for shapes that do not match and for non-finite input.
    """
    solver = solver or Solver()
    _check(weight, hessian, settled)
    work, h = weight.float().clone(), hessian.float().clone()
    dead = h.diagonal() == 0  # inputs that were never active: their columns decide nothing
    h.diagonal()[dead] = 1.0
    order = torch.argsort(h.diagonal(), descending=True, stable=True) if solver.order else None
    if order is not None:
        h = h[order][:, order]
    upper, damping = _inverse_factor(h, solver.damping)
    if upper is None:
        values = settled.apply(work)
        note = f"H could not be factorised even with damping {damping:g}: rounded to nearest instead"
        return Solution(settled.quantize(work), values, damping, note)
    found = sweep(work, upper, settled, order, solver.block)
    if solver.refine:
        h.diagonal().add_(damping * h.diagonal().mean())
        found = settled.apply(found)
    for _ in range(solver.refine):
        found = descend(found, work, h, settled, order, solver.block)
    note = "" if damping == solver.damping else f"H needed damping {damping:g} to be factorised"
    return Solution(settled.quantize(found), settled.apply(found), damping, note)


def output_error(weight: Tensor, values: Tensor, hessian: Tensor) -> float:
    """Return ``tr(d H d^T) / tr(w H w^T)`` with ``d = values - weight``: the relative squared error of the outputs."""
    w, h = weight.double(), hessian.double()
    d = values.double() - w
    return float(((d @ h) * d).sum() / ((w @ h) * w).sum().clamp_min(torch.finfo(torch.float64).tiny))


def _check(weight: Tensor, hessian: Tensor, settled: Settled) -> None:
    if weight.dim() != 2 or hessian.shape != (weight.shape[1], weight.shape[1]) or settled.shape != weight.shape:
        raise InputError(
            f"gptq: weight {tuple(weight.shape)}, H {tuple(hessian.shape)} and scales for {settled.shape} do not "
            "match; expected [N, K], [K, K] and [N, K]"
        )
    if settled.cast.rounding.random:
        raise InputError(f"gptq: cast {settled.cast} draws random bits; use a deterministic rounding")
    for name, tensor in (("weight", weight), ("H", hessian)):
        if not tensor.isfinite().all():
            raise InputError(f"gptq: {name} is not finite; look for NaN in the model or in the calibration data")


def _inverse_factor(h: Tensor, damping: float) -> tuple[Tensor | None, float]:
    """Return (U upper with ``U^T U`` the inverse of the damped H, the damping that worked), float32.

    Backwards, H is ``L L^T``; so the inverse of L, backwards again, is U: one factorisation instead of two, and no
    inverse of H. In float64: H of few tokens is singular but for the damping.
    """
    backwards = h.double().flip(0, 1)
    mean = float(backwards.diagonal().mean())
    added = 0.0
    for _ in range(_ATTEMPTS):
        backwards.diagonal().add_(damping * mean - added)
        added = damping * mean
        lower, failed = torch.linalg.cholesky_ex(backwards)
        if not failed:
            eye = torch.eye(len(h), dtype=lower.dtype, device=h.device)
            upper = torch.linalg.solve_triangular(lower, eye, upper=False).flip(0, 1).float()
            if upper.isfinite().all():
                return upper, damping
        damping = max(damping, 1e-4) * 10
    return None, damping / 10

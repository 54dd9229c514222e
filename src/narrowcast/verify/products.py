"""Products of the operands that kernels made: in float32, and in 16 bits as training writes them."""

from dataclasses import replace

import torch
from torch import Tensor

from narrowcast import backend
from narrowcast.errors import CheckFailed
from narrowcast.kernels.plan import FP8, Plan
from narrowcast.kernels.rebased import rebased, settled
from narrowcast.names import dtype_name
from narrowcast.nn.spec import OPERANDS
from narrowcast.quantize import QTensor
from narrowcast.verify.finding import Finding, difference, different, same
from narrowcast.verify.sums import bound, float32_bound, product

WRITTEN = (torch.bfloat16, torch.float16)


def check_products(finding: Finding, plans: dict[str, Plan], narrow: dict[str, QTensor], where: str) -> None:
    """Compare every product with float64's of the decoded operands."""
    for gemm, plan in ((gemm, way) for gemm, chosen in plans.items() for way in _ways(chosen)):
        a, b = (narrow[label] for label in OPERANDS if label.startswith(f"{gemm}."))
        given = (a, b, replace(plan, least=0))
        y = backend.gemm(*given, torch.float32)
        left, right = (_decoded(q) for q in (a, b))
        depth = min(left.shape[1], right.shape[1])
        want = left[:, :depth] @ right[:, :depth].mT
        cuda = y.device.type == "cuda"
        if plan.first is not None:
            a, b, plan = _taken(finding, a, b, plan, f"{gemm} of {where}")
        limit = (bound if cuda else float32_bound)(a, b, plan)
        _wide(finding, y, want, limit, f"{gemm} of {where}")
        modelled = same(product(a, b, plan), y) if cuda else torch.ones_like(y, dtype=torch.bool)
        if cuda:
            finding.equal += int(modelled.sum())
            finding.modelled += y.numel()
        for dtype in WRITTEN:
            what = f"{gemm} of {where}, written in {dtype_name(dtype)}"
            try:
                made = backend.gemm(*given, dtype)
            except CheckFailed as error:  # the library's own refusal: a finding, not the end
                finding.written += 1
                finding.misrounded += 1
                finding.note(f"{what}: {error}")
                continue
            _written(finding, made, want, limit, what)
            sums = y.to(dtype)
            finding.rounded += int((same(made, sums) & modelled).sum())
            finding.roundings += int(modelled.sum())


def _ways(plan: Plan) -> tuple[Plan, ...]:
    """Return all that a plan may come to by the operands' size."""
    return (replace(plan, by="library"), replace(plan, by="ours")) if plan.by == "faster" else (plan,)


def _taken(finding: Finding, a: QTensor, b: QTensor, plan: Plan, what: str) -> tuple[QTensor, QTensor, Plan]:
    """Return what was multiplied, and how, where that depends on the data; what the pass before it made is compared."""
    for q in (a, b):
        for carrier in FP8:
            (found, lack), (want, missing) = (rebased(q, carrier, plainly) for plainly in (False, True))
            fits = lack[: q.shape[0]] == 0
            wrong = difference(found, want) or different(lack, missing)
            wrong = wrong or different(_decoded(found)[fits], _decoded(q)[fits])
            if wrong:
                finding.differing += 1
                finding.note(f"{q.cast} for {what}, in {carrier}: {wrong}")
    taken = settled(a, b)
    if isinstance(taken, str):
        finding.beyond_fp8 += 1
        return a, b, replace(plan, first=None)
    finding.fp8 += 1
    return taken


def _wide(finding: Finding, y: Tensor, want: Tensor, limit: Tensor, what: str) -> None:
    error, finite = (y.double() - want).abs(), want.isfinite()
    wrong = torch.where(finite, ~(error <= limit), ~same(y, want))
    finding.products += 1
    if bool(wrong.any()):
        finding.failed += 1
        finding.beyond += int(wrong.sum())
        _tell(finding, y, want, wrong, what)
    if bool(finite.any()):
        finding.worst = max(finding.worst, float((error / limit)[finite].max()))


def _written(finding: Finding, made: Tensor, want: Tensor, limit: Tensor, what: str) -> None:
    """Count one product in 16 bits.

    Rounding keeps order, so what lies within its bound lies, rounded, between the bound's rounded ends.
    """
    low, high = ((want + side * limit).float().to(made.dtype) for side in (-1, 1))
    wrong = torch.where(want.isfinite(), ~((low <= made) & (made <= high)), ~same(made, want.to(made.dtype)))
    finding.written += 1
    if bool(wrong.any()):
        finding.misrounded += 1
        _tell(finding, made, want, wrong, what)


def _tell(finding: Finding, found: Tensor, want: Tensor, wrong: Tensor, what: str) -> None:
    at = tuple(wrong.nonzero()[0].tolist())
    finding.note(f"{what}: {float(found[at]):.9g} at {at}, expected {float(want[at]):.9g}")


def _decoded(q: QTensor) -> Tensor:
    """Return the values of all columns, those that padding (and a rotation) filled among them, float64."""
    return replace(q, shape=(q.shape[0], q.padded[1]), dtype=torch.float32).dequantize().double()

"""One group of weights that share an input, quantized: balance, rotate, search, solve, write back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from narrowcast.analysis.loss import sqnr_db
from narrowcast.errors import InputError
from narrowcast.ptq.balance import awq, smooth
from narrowcast.ptq.gptq import output_error
from narrowcast.ptq.observe import Group, Statistics
from narrowcast.ptq.recipe import Awq, PtqRecipe, Smooth
from narrowcast.ptq.targets import Target
from narrowcast.quantize import QTensor

#: statistics of the rows that met matrix ``i`` of a target, or None
Seen = Callable[[Target, int], Statistics | None]


@dataclass(frozen=True)
class Narrowed:
    """What became of one matrix.

    Attributes:
        name: of the parameter, with the expert's number in brackets where it is one of several.
        shape: (N, K).
        quantized: codes and scales, of the rotated and balanced weight.
        sqnr_db: signal to quantization noise of the weight, dB; None where nothing was lost.
        output_error: relative squared error of the outputs on the calibration rows, or None where none were seen.
        rows: calibration rows.
        notes: what was done otherwise, and why.
    """

    name: str
    shape: tuple[int, int]
    quantized: QTensor
    sqnr_db: float | None
    output_error: float | None
    rows: int
    notes: tuple[str, ...] = ()


def balance(group: Group, seen: Statistics, recipe: PtqRecipe, parameters: dict[str, nn.Parameter]) -> str:
    """Move the recipe's factors from the group's input into its weights; return a note, or an empty string.

    ``seen`` is brought up to date, so that what follows sees the balanced input.
    """
    if recipe.balance is None:
        return ""
    if not group.maker:
        return f"not balanced: {group.why}"
    weights = [t.matrices()[0] for t in group.targets]
    match recipe.balance:
        case Smooth(alpha):
            factors, note = smooth(seen.amax, weights, alpha), ""
        case Awq(steps, duo):
            assert seen.hessian is not None
            factors, exponent = awq(seen.mean, seen.hessian, weights, recipe.scheme.weight, steps=steps, duo=duo)
            note = f"awq exponent {exponent:g}"
    with torch.no_grad():
        for name in group.maker:
            parameter = parameters[name]
            offset = group.offset if name.endswith("weight") else 0.0
            divisor = factors[:, None] if parameter.dim() == 2 else factors
            parameter.copy_((parameter.float() + offset) / divisor - offset)
        for target, weight in zip(group.targets, weights, strict=True):
            target.write([weight * factors])
    if seen.hessian is not None:
        seen.hessian /= factors[:, None] * factors
    seen.amax, seen.total = seen.amax / factors, seen.total / factors
    return note


def narrow(group: Group, seen: Seen, recipe: PtqRecipe, note: str = "") -> list[Narrowed]:
    """Quantize the group's matrices in place and return what became of each.

    Matrices that share an input are quantized as one, stacked by rows, so that a scale of the whole tensor is shared,
    as serving engines that fuse them need it; experts one by one.

    Args:
        group: weights that share an input.
        seen: statistics of the rows that met matrix ``i`` of a target, or None.
        recipe: how.
        note: what happened before, for the account.
    """
    found: list[Narrowed] = []
    values: dict[str, list[Tensor]] = {t.name: [] for t in group.targets}
    for lot in _lots(group, recipe):
        matrices = [t.matrices()[i] for t, i in lot]
        names = [f"{t.name}[{i}]" if t.kind == "experts" else t.name for t, i in lot]
        for name, matrix in zip(names, matrices, strict=True):
            if not matrix.isfinite().all():
                raise InputError(f"weight {name} holds NaN or infinite values; the model is damaged")
        facts = seen(*lot[0])
        stacked, solved, why = _solve(torch.cat(matrices), facts, recipe, names[0])
        start = 0
        for (target, _), name, matrix in zip(lot, names, matrices, strict=True):
            stop = start + len(matrix)
            quantized = stacked.rows(start, stop) if len(lot) > 1 else stacked
            found.append(_account(name, matrix, solved[start:stop], quantized, facts, recipe, (note, why)))
            values[target.name].append(solved[start:stop])
            start = stop
    for target in group.targets:
        target.write(values[target.name])
    return found


def _lots(group: Group, recipe: PtqRecipe) -> list[list[tuple[Target, int]]]:
    """Return which matrices are quantized as one: all, unless a tile would reach from one into the next."""
    every = [(t, i) for t in group.targets for i in range(len(t.matrices()))]
    rows = recipe.scheme.weight.tile.rows
    apart = group.targets[0].kind == "experts" or any(t.shape[0] % max(rows, 1) for t in group.targets)
    apart = apart or recipe.scheme.weight.scale.in_order  # its second level goes through all tiles
    return [[one] for one in every] if apart else [every]


def _solve(matrix: Tensor, seen: Statistics | None, recipe: PtqRecipe, name: str) -> tuple[QTensor, Tensor, str]:
    scheme = recipe.scheme
    weight = matrix.detach().float()
    hessian = seen.hessian if seen is not None and seen.rows else None
    if scheme.transform is not None:
        weight = scheme.transform.forward(weight)
        hessian = rotated(hessian, recipe) if hessian is not None else None
    settled = recipe.search.settle(weight, scheme.weight, hessian, f"weight {name}")
    if recipe.solver is None:
        return settled.quantize(weight), settled.apply(weight), ""
    if hessian is None:
        return settled.quantize(weight), settled.apply(weight), "no calibration row met it: rounded to nearest"
    solution = recipe.solver.solve(weight, hessian, settled)
    return solution.quantized, solution.values, solution.note


def rotated(hessian: Tensor, recipe: PtqRecipe) -> Tensor:
    """Return ``H`` of the rotated input: the rotation on both axes."""
    transform = recipe.scheme.transform
    assert transform is not None
    return transform.forward(transform.forward(hessian).mT.contiguous())


def _account(
    name: str, matrix: Tensor, values: Tensor, quantized: QTensor, seen: Statistics | None, recipe: PtqRecipe,
    notes: tuple[str, ...],
) -> Narrowed:  # fmt: skip
    source = matrix.detach().float()
    transform = recipe.scheme.transform
    back = values if transform is None else transform.inverse(values)
    hessian = seen.hessian if seen is not None and seen.rows else None
    error = output_error(source, back, hessian) if hessian is not None else None
    shape = (int(matrix.shape[0]), int(matrix.shape[1]))
    rows = seen.rows if seen else 0
    return Narrowed(name, shape, quantized, sqnr_db(source, back), error, rows, tuple(n for n in notes if n))

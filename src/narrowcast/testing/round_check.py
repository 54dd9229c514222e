"""Check an encoder or a decoder of single numbers."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Format
from narrowcast.quantize import Cast
from narrowcast.testing import habits
from narrowcast.testing.foreign import KINDS, Carrier, arrangements, codes_of, foreign, numbers, orders, values_of
from narrowcast.testing.inputs import CLASSES, Given, classify, inputs
from narrowcast.testing.judge import Reading, judge
from narrowcast.testing.report import Finding
from narrowcast.testing.trials import DecodeTrial, RoundTrial

_ROW = 64  # numbers in a row of the matrix that a function is given
_SAMPLED_CODES = 1 << 16


def check_encoder(
    function: Callable[..., Any], name: str, asked: Cast, kind: str | None, arrays: str | None, given: Given
) -> tuple[Finding, list[Carrier] | None]:
    """Return what came of an encoder or rounder, and how its codes come (None where it returns values)."""
    fmt, mode = asked.format, asked.rounding
    x = inputs(fmt, mode, given.dtype)
    classes = classify(x, fmt, mode)
    kept = ~torch.isin(classes, torch.tensor([CLASSES.index(name) for name in given.without], dtype=torch.int64))
    x, classes = x[kept], classes[kept]
    matrix = _rows(x, 1.0)
    other = foreign(function, name, (torch.ones(8, _ROW, dtype=given.dtype),), arrays)
    parts = other(matrix.to(given.dtype))
    if len(parts) != 1:
        raise InputError(
            f"{name} returned {len(parts)} arrays, expected one; with scales, give a scale rule and a tile"
        )
    raw = numbers(parts[0], name)
    kind = _kind(kind, KINDS, "values" if raw.is_floating_point() else "codes")
    trial = RoundTrial(x, x, classes, fmt)
    start = habits.rounder(fmt, mode)
    if kind == "values":
        values = values_of(raw, tuple(matrix.shape), name).flatten()[: len(x)]
        return judge(name, kind, start, [_reading("", replace(trial, found=values))], habits.neighbours(fmt)), None
    codes = codes_of(raw, fmt, tuple(matrix.shape), name)
    readings = [
        _reading(order, replace(trial, found=found.flatten()[: len(x)]))
        for order, found in {"": codes, **arrangements(codes, fmt.bits)}.items()
    ]
    return judge(name, kind, start, readings, habits.neighbours(fmt)), [Carrier(parts[0], raw.shape != matrix.shape)]


def check_decoder(
    function: Callable[..., Any], name: str, asked: Cast, carriers: list[Carrier] | None, arrays: str | None
) -> Finding:
    """Return what came of a decoder, given every code."""
    fmt = asked.format
    codes = _codes(fmt)
    matrix = _rows(codes, 0)
    carrier = carriers[0] if carriers else Carrier(torch.zeros(0, dtype=fmt.code_dtype))
    given = carrier(matrix, fmt.bits)
    if arrays is None and not isinstance(given, Tensor):
        arrays = "numpy"
    other = foreign(function, name, (given[:1],), arrays)
    (raw,) = (numbers(part, name) for part in other(given)[:1])
    values = values_of(raw, tuple(matrix.shape), name)
    readings = [
        _reading(order, DecodeTrial(codes, found.flatten()[: len(codes)], fmt))
        for order, found in {"": values, **orders(values)}.items()
    ]
    return judge(name, "decoded", habits.rounder(fmt, asked.rounding), readings, habits.neighbours(fmt))


def _reading(order: str, trial: RoundTrial | DecodeTrial) -> Reading:
    return Reading(order, lambda: [trial], trial)


def _codes(fmt: Format) -> Tensor:
    """Return every code, int64, often enough to fill a row; a sample of them beyond 16 bits."""
    if fmt.bits > 16:
        return torch.linspace(0, (1 << fmt.bits) - 1, _SAMPLED_CODES, dtype=torch.float64).long()
    codes = fmt.codes().long()
    return codes.repeat(max(1, _ROW // len(codes)))


def _rows(x: Tensor, fill: float) -> Tensor:
    return torch.nn.functional.pad(x, (0, -len(x) % _ROW), value=fill).view(-1, _ROW)


def _kind(declared: str | None, known: tuple[str, ...], seen: str) -> str:
    if declared is not None and declared not in known:
        raise InputError(f"unknown kind {declared!r} here; known: {', '.join(known)}")
    return declared or seen

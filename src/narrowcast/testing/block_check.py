"""Check an encoder or a decoder of blocks that share scales."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import unpack
from narrowcast.quantize import Cast
from narrowcast.scaling import TwoLevel
from narrowcast.testing.block_trials import Answer, BlockTrial, block_trial, merged
from narrowcast.testing.blocks import MIXED, SCALE_ZEROS, Scene, block_size, scenes, to_blocks, to_matrix
from narrowcast.testing.foreign import (
    BLOCK_KINDS,
    Carrier,
    arrangements,
    codes_of,
    foreign,
    numbers,
    orders,
    values_of,
)
from narrowcast.testing.inputs import Given
from narrowcast.testing.judge import Reading, judge
from narrowcast.testing.report import Finding
from narrowcast.testing.scaler import neighbours, scale_format, scaler

_RECIPROCAL = "scales stored as their reciprocals"


def check_block_encoder(
    function: Callable[..., Any], name: str, asked: Cast, kind: str | None, arrays: str | None, values: Given
) -> tuple[Finding, list[Carrier] | None]:
    """Return what came of an encoder of blocks, and how its outputs come (None where it returns values)."""
    if kind is not None and kind not in BLOCK_KINDS:
        raise InputError(f"unknown kind {kind!r} of a block format; known: {', '.join(BLOCK_KINDS)}")
    plan = _plan(asked, values)
    probe = to_matrix(torch.ones_like(plan[0].blocks), asked.tile).to(values.dtype)
    other = foreign(function, name, (probe,), arrays)
    trials: list[BlockTrial] = []
    parts: tuple[Any, ...] = ()
    for scene in plan:
        matrix = to_matrix(scene.blocks, asked.tile)
        parts = other(matrix.to(values.dtype))
        answer = _answer(parts, matrix, asked, name)
        trials.append(block_trial(scene.name, scene.blocks, answer, asked, scene.thresholds))
    seen = "dequantized" if trials[0].answer.scales is None else "codes+scales"
    if kind is not None and kind != seen:
        raise InputError(f"{name} returned {len(parts)} arrays, which is kind {seen}, expected {kind}")
    ways = neighbours(asked, _empties(trials))
    finding = judge(name, seen, scaler(asked), list(_readings(trials)), ways)
    if seen == "dequantized":
        return finding, None
    packed = numbers(parts[0], name).shape != matrix.shape
    return finding, [Carrier(parts[0], packed), *(Carrier(part) for part in parts[1:])]


def _plan(asked: Cast, values: Given) -> list[Scene]:
    """Return the scenes, as their dtype holds them, without those that have what is left out."""
    unlike = values.without - {"NaN", "infinity"}
    if unlike:
        raise InputError(f"of a block format only 'NaN' and 'infinity' can be left out, found {', '.join(unlike)}")
    found = [replace(scene, blocks=scene.blocks.to(values.dtype).float()) for scene in scenes(asked)]
    if "NaN" in values.without:
        found = [scene for scene in found if not scene.blocks.isnan().any()]
    if "infinity" in values.without:
        found = [scene for scene in found if not scene.blocks.isinf().any()]
    return found


def check_block_decoder(
    function: Callable[..., Any], name: str, asked: Cast, carriers: list[Carrier] | None, arrays: str | None
) -> Finding:
    """Return what came of a decoder of blocks, given our own codes and scales."""
    trials = []
    other = None
    for scene in scenes(asked):
        matrix = to_matrix(scene.blocks, asked.tile)
        given = _encoded(matrix, asked, carriers)
        if other is None:
            by = arrays or (None if isinstance(given[0], Tensor) else "numpy")
            other = foreign(function, name, given, by)
        values = values_of(numbers(other(*given)[0], name), tuple(matrix.shape), name)
        trials.append(block_trial(scene.name, scene.blocks, Answer(to_blocks(values, asked.tile)), asked, False))
    return judge(name, "decoded", scaler(asked), list(_readings(trials)), neighbours(asked))


# --- reading answers ---


def _answer(parts: tuple[Any, ...], matrix: Tensor, asked: Cast, name: str) -> Answer:
    """Return one call's outputs as blocks; InputError where they are no answer."""
    found = [numbers(part, name) for part in parts]
    shape, count = tuple(matrix.shape), matrix.numel() // block_size(asked.tile)
    if len(found) == 1:
        if not found[0].is_floating_point():
            raise InputError(f"{name} returned codes without scales, expected (codes, scales) or dequantized values")
        return Answer(to_blocks(values_of(found[0], shape, name), asked.tile))
    most = 3 if isinstance(asked.scale, TwoLevel) else 2
    if len(found) > most:
        raise InputError(f"{name} returned {len(found)} arrays, expected at most {most} for scale {asked.scale}")
    codes = to_blocks(codes_of(found[0], asked.format, shape, name), asked.tile)
    return Answer(codes, _scales(found[1], count, asked, name), *(part.double().reshape(1) for part in found[2:]))


def _scales(raw: Tensor, count: int, asked: Cast, name: str) -> Tensor:
    """Return the values of returned scales, float64 ``[count]``."""
    if raw.numel() != count:
        raise InputError(
            f"{name} returned {raw.numel()} scales {list(raw.shape)}, expected {count} for tile {asked.tile}"
        )
    if raw.is_floating_point():
        return raw.flatten().double()
    stored = scale_format(asked.scale)
    if stored is None:
        raise InputError(f"{name} returned integer scales, expected float values for scale {asked.scale}")
    return stored.decode(codes_of(raw.flatten(), stored, (count,), name)).double()


def _readings(trials: list[BlockTrial]) -> Iterator[Reading]:
    """Yield the answers as they came, then in other orders, then with their scales read otherwise."""
    names = ["", *_orders(trials[0])]
    if trials[0].answer.scales is not None:
        names.append(_RECIPROCAL)
    telling = next(trial for trial in trials if trial.scene == MIXED)
    for name in names:
        yield Reading(name, partial(_reread, trials, name), _read(telling, name))


def _reread(trials: list[BlockTrial], name: str) -> list[BlockTrial]:
    """Return the answers in another order; in one trial where a scale depends on its block alone (that is faster)."""
    found = [_read(trial, name) for trial in trials]
    return found if isinstance(trials[0].cast.scale, TwoLevel) else [merged(found)]


def _read(trial: BlockTrial, name: str) -> BlockTrial:
    answer = trial.answer
    if name == _RECIPROCAL and answer.scales is not None:
        return replace(trial, answer=replace(answer, scales=torch.ones(()) / answer.scales))
    if not name:
        return trial
    return replace(trial, answer=replace(answer, elements=to_blocks(_orders(trial)[name], trial.cast.tile)))


def _orders(trial: BlockTrial) -> dict[str, Tensor]:
    cast = trial.cast
    matrix = to_matrix(trial.answer.elements, cast.tile)
    if trial.answer.scales is None:
        return orders(matrix, cast.tile.cols)
    return arrangements(matrix, cast.format.bits, cast.tile.cols)


def _empties(trials: list[BlockTrial]) -> list[float]:
    """Return the few scales that blocks of zeros were given."""
    seen = [t.answer.scales[t.scale_classes == SCALE_ZEROS] for t in trials if t.answer.scales is not None]
    scales = torch.cat(seen).unique() if seen else torch.zeros(0)
    return [float(scale) for scale in scales[scales.isfinite()]][:3]


# --- what a decoder is given ---


def _encoded(matrix: Tensor, asked: Cast, carriers: list[Carrier] | None) -> tuple[Any, ...]:
    """Return our own codes and scales of ``matrix``, in arrays as the encoder returned them."""
    q = asked.quantize(matrix)
    codes = unpack(q.codes, asked.format.bits, matrix.shape[-1]).long()
    rows = matrix.shape[0] // (asked.tile.rows or matrix.shape[0])
    scales = q.scales.reshape(rows, -1)
    parts = [scales] if q.tensor_scale is None else [scales, q.tensor_scale]
    if carriers is None:
        return codes.to(asked.format.code_dtype), *parts
    stored = scale_format(asked.scale)
    if stored is not None and _is_float(carriers[1]):
        parts[0] = stored.decode(parts[0])
    given = [carrier(part, 8) for carrier, part in zip(carriers[1:], parts, strict=False)]
    return carriers[0](codes, asked.format.bits), *given


def _is_float(carrier: Carrier) -> bool:
    return numbers(carrier.like, "").is_floating_point()

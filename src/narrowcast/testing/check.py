"""Run a foreign encoder or rounder through every input that matters, and say where it differs and why."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from narrowcast.errors import InputError, nearest
from narrowcast.formats import Format, Rounding
from narrowcast.formats import rounding as rounding_of
from narrowcast.quantize import Cast, cast
from narrowcast.scaling import One, ScaleRule, Tile
from narrowcast.scaling import scale_rule as scale_rule_of
from narrowcast.scaling import tile as tile_of
from narrowcast.testing.block_check import check_block_decoder, check_block_encoder
from narrowcast.testing.inputs import CLASSES, Given
from narrowcast.testing.report import Report
from narrowcast.testing.round_check import check_decoder, check_encoder

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def conform(
    encode: Callable[..., Any] | None,
    decode: Callable[..., Any] | None = None,
    *,
    format: str | Format | Cast,
    rounding: str | Rounding | None = None,
    scale_rule: str | ScaleRule | None = None,
    tile: str | Tile | None = None,
    kind: str | None = None,
    arrays: str | None = None,
    dtype: str = "float32",
    leave_out: Sequence[str] = (),
    names: tuple[str, str] = ("encode", "decode"),
) -> Report:
    """Hold a foreign encoder or rounder against the definition here, bit for bit, and name what it does otherwise.

    Tried are all bfloat16 and float16 numbers and every float32 at which the format's rounding turns, with its
    neighbours; for block formats also the maxima at which a scale rule turns, blocks of zeros, and blocks that are not
    finite.

    Args:
        encode: takes one array of values, torch or NumPy. Without a scale rule it gets ``[n, 64]`` and returns codes
            (integers or a one-byte float type, below 8 bits also packed) or values, of that shape. With one it gets
            matrices that the tile divides and returns (codes, scales), (codes, scales, scale of the tensor), or
            dequantized values. None: only ``decode`` is checked.
        decode: takes what ``encode`` returned, or plain integer codes, and returns values; None: not checked.
        format: a format, a preset or a cast's spelling (``"mxfp4"``), which the next three override.
        rounding: a deterministic mode; by default nearest-even.
        scale_rule, tile: of a block format, both or neither: ``"e8m0-ceil"``, ``"1x32"``.
        kind: what ``encode`` returns, where it cannot be seen: ``codes``, ``values``, ``codes+scales`` or
            ``dequantized``.
        arrays: ``"torch"`` or ``"numpy"``; by default what works.
        dtype: type of the values that ``encode`` is given; those that it cannot hold are left out.
        leave_out: classes of input that ``encode`` refuses (`narrowcast.testing.inputs.CLASSES`); of a block format
            only ``"NaN"`` and ``"infinity"``.
        names: what to call the two in the report.

    Returns:
        A `Report`; ``report.conforms`` says yes or no, ``str(report)`` is for people.

    Raises:
        InputError: a function fails, or returns a wrong shape or type.
    """
    asked = _asked(format, rounding, scale_rule, tile)
    if encode is None and decode is None:
        raise InputError("nothing to check: give an encoder, a decoder or both")
    if dtype not in _DTYPES:
        raise InputError(f"unknown dtype {dtype!r}{nearest(dtype, _DTYPES)}")
    scaled = not isinstance(asked.scale, One)
    encoder, decoder = (check_block_encoder, check_block_decoder) if scaled else (check_encoder, check_decoder)
    findings, carriers = [], None
    if encode is not None:
        finding, carriers = encoder(encode, names[0], asked, kind, arrays, Given(_DTYPES[dtype], _left_out(leave_out)))
        findings.append(finding)
        if decode is not None and carriers is None:
            raise InputError(f"{names[0]} returns {finding.kind}, so there is nothing for {names[1]} to decode")
    if decode is not None:
        findings.append(decoder(decode, names[1], asked, carriers, arrays))
    return Report(str(asked) if scaled else f"{asked.format}, {asked.rounding}", tuple(findings))


def _left_out(names: Sequence[str]) -> frozenset[str]:
    for name in names:
        if name not in CLASSES:
            raise InputError(f"unknown class of input {name!r}{nearest(name, CLASSES)}")
    return frozenset(names)


def _asked(
    format: str | Format | Cast,
    rounding: str | Rounding | None,
    scale_rule: str | ScaleRule | None,
    tile: str | Tile | None,
) -> Cast:
    """Return what is asked for as a cast; InputError where there is no single right answer."""
    base = Cast(format) if isinstance(format, Format) else cast(format)
    mode = base.rounding if rounding is None else rounding_of(rounding)
    scale = base.scale if scale_rule is None else _parsed(scale_rule, scale_rule_of)
    shape = base.tile if tile is None else _parsed(tile, tile_of)
    asked = Cast(base.format, shape, scale, mode, base.transform)
    if asked.random:
        raise InputError(f"{asked} draws random bits: only deterministic roundings have one right answer")
    if asked.transform is not None or scale.delayed is not None or shape.pad:
        raise InputError(f"cast {asked}: transforms, histories and padding are not checked; leave them out")
    if (scale_rule is None) != (tile is None) and isinstance(base.scale, One):
        missing = "a tile, e.g. 1x32" if tile is None else "a scale rule, e.g. e8m0"
        raise InputError(f"a block format of {asked.format} needs {missing} too")
    return asked


def _parsed(value: Any, parse: Callable[[str], Any]) -> Any:
    return parse(value) if isinstance(value, str) else value

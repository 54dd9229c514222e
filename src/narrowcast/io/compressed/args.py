"""What compressed-tensors calls a cast: its "args" objects, from a cast and back to one.

Fields and rules: compressed-tensors 0.20, ``quantization/quant_args.py`` (export-reference, section 2). It forbids
unknown fields, so only those it knows are written.
"""

from dataclasses import replace
from typing import Any

import torch

from narrowcast.errors import InputError
from narrowcast.formats import Format, Integer, Minifloat, format
from narrowcast.quantize import Cast
from narrowcast.scaling import (
    ROW,
    TENSOR,
    Divided,
    DividedTwoLevel,
    Narrow,
    PowerOfTwo,
    ScaleRule,
    Tile,
    TwoLevel,
    Wide,
    ZeroPoint,
)
from narrowcast.scaling.numbers import SIGNS

_FLOATS = {"e4m3fn": 8, "e2m1fn": 4}
_RULE = "three-quarters"  # of MX scales that are made at run time
CARRIER = {torch.float32: "fp32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def refusal(weight: Cast, activation: Cast | None, static: bool) -> str:
    """Return why compressed-tensors cannot express a layer of these casts, or an empty string."""
    try:
        weight_args(weight)
        if activation is not None:
            input_args(activation, static)
    except InputError as error:
        return str(error)
    return ""


def weight_args(cast: Cast) -> dict[str, Any]:
    """Return the args object of a weight; InputError where there is none for the cast."""
    zero = isinstance(cast.scale, ZeroPoint)
    found = _element(cast, "weight") | {"symmetric": not zero, "dynamic": False}
    if zero and cast.tile.rows != 1:
        raise InputError(f"weight cast {cast}: zero points are for rows and groups there, not for tiles of {cast.tile}")
    mx, two = isinstance(cast.scale, PowerOfTwo), isinstance(cast.scale, TwoLevel | DividedTwoLevel)
    if found["type"] == "float" and (mx or two or found["num_bits"] == 4):
        return found | _block_scaled(cast, "weight")
    if two:
        raise InputError(f"weight cast {cast}: two-level scales are for e2m1fn in groups of 16 alone")
    if cast.tile == TENSOR:
        return found | {"strategy": "tensor"}
    if cast.tile == ROW:
        return found | {"strategy": "channel"}
    if cast.tile.rows == 1 and found["type"] == "int":
        return found | {"strategy": "group", "group_size": cast.tile.cols}
    if cast.tile.rows > 1 and found["type"] == "float":
        return found | {"strategy": "block", "block_structure": [cast.tile.rows, cast.tile.cols]}
    has = "tensor, row or MxN" if found["type"] == "float" else "tensor, row or 1xN"
    raise InputError(f"weight cast {cast}: {cast.format} weights have tiles of {has} there, not {cast.tile}")


def input_args(cast: Cast, static: bool) -> dict[str, Any]:
    """Return the args object of an input; InputError where loaders would compute something else than the cast."""
    if isinstance(cast.scale, ZeroPoint):
        raise InputError(f"input cast {cast}: zero points of inputs are not written there")
    found = _element(cast, "input") | {"symmetric": True}
    expected = served_input(cast, torch.float32)
    if _kind(cast, cast.scale) != _kind(expected, expected.scale):
        raise InputError(f"input cast {cast}: loaders compute {expected} instead; quantize with that (`served`)")
    if isinstance(expected.scale, DividedTwoLevel):
        if not static:
            raise InputError(f"input cast {cast}: loaders take the scale of the whole tensor from calibration (static)")
        return found | _block_scaled(cast, "input") | {"dynamic": "local"}
    if isinstance(expected.scale, PowerOfTwo):
        return found | _block_scaled(cast, "input") | {"dynamic": True}
    if static:
        return found | {"strategy": "tensor", "dynamic": False}
    if cast.tile == TENSOR:
        return found | {"strategy": "tensor", "dynamic": True}
    if cast.tile == ROW:
        return found | {"strategy": "token", "dynamic": True}
    if cast.tile.rows == 1 and found["type"] == "float":
        return found | {"strategy": "group", "group_size": cast.tile.cols, "dynamic": True}
    raise InputError(f"input cast {cast}: {cast.format} inputs have no tiles of {cast.tile} there")


def served(weight: Cast, activation: Cast | None, dtype: torch.dtype) -> tuple[Cast, Cast | None]:
    """Return the casts with the conventions of the tools that load the checkpoint into a model of ``dtype``.

    Weight scales become numbers that ``dtype`` holds (those tools keep them in it); inputs are divided by their scales
    in ``dtype``, integers use their whole range, MX scales round as there. With these casts the model in memory and
    the reloaded one agree bit for bit. Casts that cannot be expressed stay as they are: `refusal` says why.
    """
    scale = weight.scale
    if isinstance(scale, Wide) and scale == Wide() and dtype != torch.float32:
        scale = Narrow(_float(CARRIER[dtype]))
    elif isinstance(scale, ZeroPoint) and scale.rule == Wide() and dtype != torch.float32:
        scale = replace(scale, rule=Narrow(_float(CARRIER[dtype])))
    elif isinstance(scale, TwoLevel) and weight.format.name == "e2m1fn":
        scale = DividedTwoLevel(scale.format)
    return replace(weight, scale=scale), served_input(activation, dtype) if activation is not None else None


def served_input(cast: Cast, dtype: torch.dtype) -> Cast:
    """Return what loaders compute for an input of ``dtype`` under the args of ``cast``, where they have any."""
    fmt, scale = cast.format, cast.scale
    if isinstance(fmt, Integer) and fmt.signed and fmt.symmetric and not fmt.fraction:
        fmt = format(f"int{fmt.width}_full")
    carrier = CARRIER.get(dtype, "fp32")
    if isinstance(scale, PowerOfTwo):
        scale = PowerOfTwo(_RULE)
    elif isinstance(scale, TwoLevel):
        scale = DividedTwoLevel(scale.format, carrier)
    elif isinstance(scale, DividedTwoLevel | Divided):
        scale = replace(scale, carrier=carrier)
    else:
        scale = Divided(carrier)
    return replace(cast, format=fmt, scale=scale)


def _kind(cast: Cast, rule: ScaleRule) -> tuple[object, ...]:
    """Return what two casts must share to be the same but for one rounding of a quotient."""
    symmetric = isinstance(cast.format, Minifloat)
    if isinstance(rule, PowerOfTwo):
        even = rule == PowerOfTwo("even") and cast.format.name == "e2m1fn"
        return (cast.format, "power", _RULE if even else rule.rule, rule.headroom)
    if isinstance(rule, TwoLevel | DividedTwoLevel):
        return (cast.format, "two-level", rule.format)
    plain = isinstance(rule, Divided) or (rule == Wide() and symmetric)
    return (cast.format, "divided" if plain else str(rule))


def _element(cast: Cast, what: str) -> dict[str, Any]:
    fmt = cast.format
    if cast.transform is not None:
        raise InputError(f"{what} cast {cast}: a rotation cannot be written there")
    if cast.scale.numbers is SIGNS:
        raise InputError(f"{what} cast {cast}: a scale for each sign cannot be written there")
    if isinstance(fmt, Integer) and fmt.signed and not fmt.fraction and 2 <= fmt.width <= 8:
        return {"num_bits": fmt.width, "type": "int"}
    if fmt.name in _FLOATS:
        return {"num_bits": _FLOATS[fmt.name], "type": "float"}
    raise InputError(
        f"{what} cast {cast}: compressed-tensors has e4m3fn, e2m1fn and signed integers of 2 to 8 bits, not {fmt}"
    )


def _block_scaled(cast: Cast, what: str) -> dict[str, Any]:
    """Return strategy, size and scale dtype of NVFP4 and of the MX formats."""
    rule, tile = cast.scale, replace(cast.tile, pad=False)
    if isinstance(rule, TwoLevel | DividedTwoLevel) and rule.format.name == "e4m3fn":
        if cast.format.name == "e2m1fn" and tile == Tile(1, 16):
            dtypes = {"scale_dtype": "torch.float8_e4m3fn", "zp_dtype": "torch.float8_e4m3fn"}
            return {"strategy": "tensor_group", "group_size": 16, **dtypes}
    elif isinstance(rule, PowerOfTwo) and rule.rule != "four-thirds" and tile == Tile(1, 32):
        return {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
    raise InputError(
        f"{what} cast {cast}: {cast.format} has groups of 32 under e8m0 there"
        + (", or of 16 under e4m3fn and one float32 scale" if cast.format.name == "e2m1fn" else "")
    )


# --- from args to casts ---


def cast_from(args: dict[str, Any], dtype: torch.dtype, role: str) -> Cast:
    """Return the cast that an args object stands for.

    Args:
        args: of a weight or an input.
        dtype: of the stored scales (weights) or of the model (inputs).
        role: ``weight`` or ``input``.

    Raises InputError for args that no cast expresses.
    """
    bits, kind = int(args.get("num_bits", 8)), args.get("type", "int")
    names = {("float", 8): "e4m3fn", ("float", 4): "e2m1fn", ("float", 6): "e2m3fn"}
    fmt = format(f"int{bits}_full") if kind == "int" else format(names[kind, bits])
    tile = _tile(args, role)
    rule: ScaleRule
    if args.get("strategy") == "tensor_group":
        rule = DividedTwoLevel(_float("e4m3fn"), CARRIER.get(dtype, "fp32") if role == "input" else "fp32")
    elif "uint8" in str(args.get("scale_dtype")):
        rule = PowerOfTwo(_RULE)
    elif role == "input":
        rule = Divided(CARRIER[dtype])
    else:
        rule = Wide() if dtype == torch.float32 else Narrow(_float(CARRIER[dtype]))
        rule = rule if args.get("symmetric", True) else ZeroPoint(rule, bits)
    return Cast(fmt, tile, rule)


def _tile(args: dict[str, Any], role: str) -> Tile:
    size, strategy = args.get("group_size"), args.get("strategy")
    if strategy is None:
        strategy = "tensor" if size is None else "channel" if size == -1 else "group"
    match strategy:
        case "tensor":
            return TENSOR
        case "channel" | "token":
            return ROW
        case "group" | "tensor_group":
            return Tile(1, int(args["group_size"]))
        case "block":
            rows, cols = args["block_structure"]
            return Tile(int(rows), int(cols), pad=True)
    raise InputError(f"{role} args: strategy {strategy!r} is unknown; expected tensor, channel, token, group or block")


def _float(name: str) -> Minifloat:
    found: Format = format(name)
    assert isinstance(found, Minifloat)
    return found

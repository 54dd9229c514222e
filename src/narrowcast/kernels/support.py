"""Which casts have a kernel, and why the others have none. Nothing here imports Triton."""

from dataclasses import fields
from math import lcm
from typing import Any

from narrowcast.formats import Bottom, Integer, Minifloat, Rounding, Specials
from narrowcast.formats.tabulated import Tabulated
from narrowcast.kernels.elements import WORD
from narrowcast.kernels.facts import rounding_of
from narrowcast.quantize import Cast
from narrowcast.scaling import Narrow, One, PowerOfTwo, Tile, TwoLevel, Wide
from narrowcast.transforms import Hadamard

MAX_TILE = 1 << 15  # elements of a tile (or a row) that one program holds in registers
EXPONENT_RULES = ("floor", "ceil", "ceil-exponent", "even", "nearest", "four-thirds")
MODES = (
    *("nearest-even", "nearest-away", "nearest-zero", "nearest-up", "nearest-down", "toward-zero", "up", "down", "odd"),
    *("stochastic", "stochastic-equal", "stochastic-flush"),
)
#: every field that the facts above take in; a class with another one is refused, lest a kernel ignore it
FIELDS: dict[type, str] = {
    Cast: "format tile scale rounding transform",
    Tile: "rows cols pad",
    Rounding: "name function overflow random sticky real dither",
    Hadamard: "size signs",
    Minifloat: "name exponent mantissa bias specials bottom signed saturate",
    Integer: "name width signed symmetric fraction",
    One: "",
    Wide: "history headroom",
    PowerOfTwo: "rule headroom",
    Narrow: "format",
    TwoLevel: "format",
}


def reason(cast: Cast) -> str | None:
    """Return why no kernel quantizes by ``cast``, or None where one does."""
    parts: tuple[Any, ...] = (cast, cast.format, cast.tile, cast.scale, cast.rounding, cast.transform)
    for part in parts:
        known = part is None or isinstance(part, Tabulated)
        if not known and [f.name for f in fields(part)] != FIELDS.get(type(part), "?").split():
            return f"no kernel for {type(part).__name__} {part}"
    if isinstance(cast.scale, PowerOfTwo) and cast.scale.rule not in EXPONENT_RULES:
        return f"no kernel for scale {cast.scale}"
    if rounding_of(cast.rounding).mode not in MODES:
        return f"no kernel for rounding {cast.rounding}"
    if cast.transform and cast.transform.size > 128:
        return f"transform {cast.transform}: kernels go up to hadamard128"
    return _shape_reason(cast)


def no_gates(cast: Cast) -> str | None:
    """Return why no kernel takes the branches of a gated unit as codes by ``cast``, or None where one does."""
    fmt, tile, scale = cast.format, cast.tile, cast.scale
    if not (isinstance(fmt, Minifloat) and fmt.bits == 8 and fmt.signed and fmt.specials is Specials.FN):
        return f"kernels decode signed minifloats of 8 bits with one NaN, not {fmt}"
    if fmt.bottom is not Bottom.SUBNORMAL or not (isinstance(scale, Narrow) and scale.format.name == "bfloat16"):
        return f"kernels decode formats with subnormals under bfloat16 scales, not {cast}"
    if tile.rows != 1 or tile.cols not in (16, 32, 64, 128) or cast.transform is not None:
        return f"kernels take groups of 16 to 128 along a row, not {tile}"
    return None


def _shape_reason(cast: Cast) -> str | None:
    tile = cast.tile
    if tile.cols and tile.cols % group_multiple(cast) and group_multiple(cast) % tile.cols:
        return f"tile {tile}: kernels need columns that are a multiple of {group_multiple(cast)}"
    if tile.rows * tile.cols > MAX_TILE:
        return f"tile {tile}: kernels hold at most {MAX_TILE} elements of a tile"
    return None


def group_multiple(cast: Cast) -> int:
    """Return the fewest elements that one thread may own: whole 32-bit words of codes, and at least 8.

    A Hadamard block of up to 32 lies within a group; a larger one in consecutive groups of a program, where the tile
    puts them so.
    """
    words = lcm(cast.format.bits, WORD) // cast.format.bits
    rotated = cast.transform.size if cast.transform else 1
    rows, cols = cast.tile.rows, cast.tile.cols
    spread = cols % rotated == 0 or (rows == 1 and cols & (cols - 1) == 0)
    return max(8, words, min(rotated, 32) if spread else rotated)

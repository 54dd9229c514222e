"""What the pass over both orientations must know of its casts, and its layout. Nothing here imports Triton.

A pass writes the codes of a matrix ``[M, K]`` by one cast, tiles along K, and those of its transpose ``[K, M]`` by
another, tiles along M: its two *sides*.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from narrowcast.formats import Integer, Minifloat
from narrowcast.kernels.elements import Facts, FloatFacts, element_of
from narrowcast.kernels.facts import (
    RotationFacts,
    RoundingFacts,
    ScaleFacts,
    Way,
    rotation_of,
    rounding_of,
    scale_facts,
    scale_format,
    way_of,
)
from narrowcast.kernels.support import reason as reason_of
from narrowcast.names import dtype_name
from narrowcast.quantize import Cast
from narrowcast.scaling import Narrow, One, PowerOfTwo, Wide

RUNS = (16, 32, 64, 128)  # columns (and rows) of a tile that a program can hold whole
BITS = 8


@dataclass(frozen=True)
class Side:
    """One cast as the pass takes it.

    Attributes:
        E, R, S, F, W: facts of element, rounding, scale, the format of scales, and the way to encode.
        tile: ``one`` (no scale), ``tensor`` and ``line`` (maxima are given), ``run`` and ``square`` (found here).
        run: elements of a tile along the side's own axis.
        hardware: name of the type that the processor itself converts to with the same bits, or an empty string.
    """

    E: Facts
    R: RoundingFacts
    S: ScaleFacts
    F: Facts | None
    W: Way
    tile: str
    run: int
    hardware: str

    @property
    def given(self) -> bool:
        """Whether maxima are an argument."""
        return self.tile in ("tensor", "line")

    @property
    def quick(self) -> bool:
        """Whether scales are made by the short way (`both_scales.wide_scale`)."""
        return self.S.kind == "wide" and 8 <= self.S.divisor <= 1 << 16

    @property
    def assembly(self) -> str:
        """PTX that makes one word ($0) of the codes of four float32 ($1 to $4), for `hardware`.

        The processor's NaN is 0x7f whatever its sign: e5m2's is 0x7e here, and unscaled casts keep the sign.
        """
        convert = f"cvt.rn.satfinite.{self.hardware}x2.f32"
        parts = [
            ".reg .b16 a, b",
            ".reg .b32 w, s, t",
            f"{convert} a, $2, $1",
            f"{convert} b, $4, $3",
            "mov.b32 w, {a, b}",
        ]
        if self.hardware == "e5m2":
            parts += ["and.b32 t, w, 0x7f7f7f7f", "add.u32 t, t, 0x01010101", "shr.u32 t, t, 7"]
            parts += ["and.b32 t, t, 0x01010101", "sub.u32 w, w, t"]
        if self.tile == "one":
            parts += ["prmt.b32 s, $1, $2, 0x0073", "prmt.b32 t, $3, $4, 0x7300", "prmt.b32 s, s, t, 0x7610"]
            parts += ["and.b32 s, s, 0x80808080", "or.b32 w, w, s"]
        return "{ " + "; ".join([*parts, "mov.b32 $0, w"]) + "; }"


def side(cast: Cast, pairs: bool = True) -> Side:
    """Return a cast's side."""
    element, rounding = element_of(cast.format, cast.rounding), rounding_of(cast.rounding)
    scale = scale_facts(cast.scale, cast.format)
    rotation: RotationFacts = rotation_of(None)
    way = replace(way_of(element, rounding, scale, rotation, pairs), halves=False)
    return Side(
        E=element,
        R=rounding,
        S=scale,
        F=scale_format(cast.scale),
        W=way,
        tile=tile_kind(cast),
        run=cast.tile.cols,
        hardware=_hardware(element, rounding),
    )


def tile_kind(cast: Cast) -> str:
    """Return `Side.tile` of a cast."""
    if isinstance(cast.scale, One):
        return "one"
    if cast.tile.is_tensor:
        return "tensor"
    if cast.tile.cols == 0:
        return "line"
    return "run" if cast.tile.rows == 1 else "square"


def _hardware(element: Facts, rounding: RoundingFacts) -> str:
    """Return the type that ``cvt.rn.satfinite`` makes with the same bits but for NaN (`Side.assembly`), or nothing."""
    if not isinstance(element, FloatFacts) or rounding.mode != "nearest-even":
        return ""
    if not element.saturate or not element.signed or element.one_zero or element.bottom != "subnormal":
        return ""
    known = {(4, 3, 7, 448.0, 0x7F): "e4m3", (5, 2, 15, 57344.0, 0x7E): "e5m2"}
    return known.get((element.exponent, element.mantissa, element.bias, element.max, element.nan_code), "")


def reason(cast: Cast, across: Cast | None) -> str | None:
    """Return why no kernel makes both orientations by these casts, or None where one does.

    ``across`` None: the same codes turned.
    """
    if across is not None and same_codes(cast, across):
        across = None
    for narrow in (cast, across or cast):
        found = reason_of(narrow) or _reason(narrow)
        if found:
            return found
    if across is None:
        return unturnable(cast)
    if "square" in (tile_kind(cast), tile_kind(across)):
        return f"squares of {cast} and {across}: kernels make the same squares for both orientations, or none"
    if cast.scale.delayed or across.scale.delayed:
        return f"{across}: kernels keep one amax history, so the transpose must reuse the codes"
    return None


def _reason(cast: Cast) -> str | None:
    known = isinstance(cast.format, Minifloat | Integer) and cast.format.bits == BITS
    if not known or not isinstance(cast.scale, One | Wide | PowerOfTwo | Narrow):
        return f"cast {cast}: kernels for both orientations write minifloats and integers of 8 bits under one scale"
    if cast.transform is not None:
        return f"cast {cast}: no kernel rotates both orientations at once"
    tile = cast.tile
    squares = tile.rows in (1, tile.cols)
    if tile.cols and (tile.cols not in RUNS or not squares):
        return f"tile {tile}: kernels for both orientations take 1xN and NxN with N of {', '.join(map(str, RUNS))}"
    return None


def unturnable(cast: Cast) -> str | None:
    """Return why the codes of a cast cannot serve its transpose, or None where they can."""
    if cast.tile.rows == 1 or cast.transform is not None:
        return (
            f"cast {cast}: its scales (or blocks) run along one axis, so its codes cannot be turned; name a cast across"
        )
    return None


def same_codes(cast: Cast, across: Cast) -> bool:
    """Return whether the codes of the transpose by ``across`` are those by ``cast``, turned."""
    return unturnable(cast) is None and not cast.random and across == turned(cast)


def turned(cast: Cast) -> Cast:
    """Return the cast that the transpose of a cast's codes obeys."""
    tile = cast.tile
    return cast if tile.rows == tile.cols else replace(cast, tile=replace(tile, rows=tile.cols, cols=tile.rows))


@dataclass(frozen=True)
class Block:
    """The shape of one program of the pass, known when a kernel is compiled.

    Attributes:
        height, width: rows and columns of the source.
        rows: consecutive rows that a thread owns, of one column: their codes lie side by side in the transpose.
        group: how many rows of blocks are walked together.
        backwards: whether the last block comes first, where the pass before has just read it.
        mask: whether anything may be missing.
        ragged: whether rows of the transpose do not start on a word; then codes are stored byte by byte.
        source: the source's dtype.
        packed: whether values wait as pairs of bfloat16 while maxima are found.
        delayed: ``first``: scale by the history and find the maximum; ``again``: the rare second go; or nothing.
    """

    height: int
    width: int
    rows: int
    group: int
    backwards: bool
    mask: bool
    ragged: bool
    source: str
    packed: bool
    delayed: str = ""

    @property
    def lines(self) -> int:
        """Runs of ``rows`` rows."""
        return self.height // self.rows


@dataclass(frozen=True)
class Shape:
    """What ``codes`` ``[rows, cols]`` and the transpose's ``[turned_rows, turned_cols]`` are padded to."""

    rows: int
    cols: int
    turned_rows: int
    turned_cols: int

    @staticmethod
    def of(shape: tuple[int, int], cast: Cast, across: Cast | None, what: str = "tensor") -> "Shape":
        """Pad a matrix for both casts; InputError where a tile does not divide it and may not be padded."""
        rows, cols = cast.padded_shape(shape, what)
        if across is None:
            return Shape(rows, cols, cols, rows)
        turned_rows, turned_cols = across.padded_shape((shape[1], shape[0]), f"{what}, transposed,")
        return Shape(rows, cols, turned_rows, turned_cols)

    @property
    def extent(self) -> tuple[int, int]:
        """Rows and columns of the source that some output covers."""
        return max(self.rows, self.turned_cols), max(self.cols, self.turned_rows)


@dataclass(frozen=True)
class Knobs:
    """What changes the speed of a launch and nothing else; see `Block`."""

    height: int = 128
    width: int = 128
    rows: int = 8
    warps: int = 8
    group: int = 1
    registers: int | None = None


#: for producers that compute much: fewer elements a thread, so that more programs share a multiprocessor
MADE = {
    "swiglu": Knobs(64, 128, 8, 8),
    "gelu": Knobs(64, 128, 8, 8),
    "swiglu-backward": Knobs(32, 128, 8, 4),
    "gelu-backward": Knobs(32, 128, 8, 4),
}
#: the same where a side has a scale for every line: of 32 rows, blocks of gradients took half as long again
LINES = {"swiglu-backward": Knobs(64, 64, 8, 4), "gelu-backward": Knobs()}


def knobs(kind: str, run: int, tiles: tuple[str, ...], draws: bool = False) -> Knobs:
    """Return the knobs for a pass over what a `Producer` of this kind makes, under tiles of up to ``run`` elements.

    As measured on an H100 (`bench/passes_gpu.py`). A program holds a tile whole: 128 x 128 elements where it must, 64
    to a thread; at 128 registers a thread two programs fit on a multiprocessor, and one waits while the other computes.
    ``tiles``: of the sides (`Side.tile`). Random bits for the transpose (``draws``) come for eight rows at a time.
    """
    if run > 64:
        return Knobs(rows=4 if not draws else 8, registers=128)
    made = MADE | LINES if "line" in tiles else MADE
    chosen = made.get(kind, Knobs())
    return chosen if chosen.height >= run else replace(chosen, height=run, warps=8)


def maxima_knobs(parts: int, whole: bool) -> Knobs:
    """Return the knobs for a pass over maxima, of the whole tensor or of rows and columns."""
    if parts == 2:
        return Knobs(64, 64, 8, 4)
    return Knobs() if whole else Knobs(128, 128, 4, 4)


def block(
    shape: tuple[int, int], sizes: Shape, source: Tensor, chosen: Knobs, waits: bool, backwards: bool = False
) -> Block:
    """Return the layout of one program for a source of ``shape``; ``waits``: whether it finds maxima of its own."""
    height, width = chosen.height, chosen.width
    whole = sizes.extent == shape and shape[0] % height == 0 and shape[1] % width == 0
    whole = whole and (sizes.rows, sizes.cols) == (sizes.turned_cols, sizes.turned_rows)
    return Block(
        height=height,
        width=width,
        rows=chosen.rows,
        group=chosen.group,
        backwards=backwards,
        mask=not whole,
        ragged=sizes.turned_cols % 4 != 0,
        source=dtype_name(source.dtype),
        packed=waits and source.dtype == torch.bfloat16,
    )

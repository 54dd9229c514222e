"""How a cast is laid over a grid of programs: the launch knobs, a frozen value with a heuristic, and the layout."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from narrowcast.formats import Minifloat
from narrowcast.formats.tabulated import Tabulated
from narrowcast.kernels.elements import WORD
from narrowcast.kernels.support import MAX_TILE, group_multiple
from narrowcast.names import dtype_name
from narrowcast.quantize import Cast

MAX_ROTATED_ROW = 1 << 12  # elements of a rotated row, which takes a register each until its maximum is known


@dataclass(frozen=True)
class Knobs:
    """What changes the speed of a launch and nothing else.

    Attributes:
        group: consecutive elements that one thread owns, a multiple of `group_multiple`.
        groups: groups of one program, at least; a power of two.
        warps: warps of 32 threads of one program.
        registers: of a thread, at most; None for as many as the compiler likes.
    """

    group: int
    groups: int
    warps: int
    registers: int | None = None


@dataclass(frozen=True)
class Layout:
    """The shape of one program, known when a kernel is compiled. See `kernels.tile`.

    Attributes:
        group: consecutive elements that one thread owns.
        vector: elements in 16 bytes of the source.
        tiles: tiles of a program (groups, where several tiles lie in one group).
        rows, runs: rows of a tile, and its groups a row.
        per_group: tiles in a group.
        cols: elements of a tile in one row of it, within one group.
        flat: whether groups follow one another in memory from first to last, so that positions need no division.
        mask: whether anything may be missing: rows, columns, or groups of the last program.
        ragged: whether rows of codes do not start on a word; then codes are stored byte by byte.
        given: where maxima come from: ``"none"``: the tile itself; ``"one"``: an argument for all; ``"row"``: an
            argument for each row.
        aligned: whether every group starts on a counter of its own of random bits.
        pairs: whether 16-bit elements are loaded two to an int32.
        source: the source's dtype.
    """

    group: int
    vector: int
    tiles: int
    rows: int
    runs: int
    per_group: int
    cols: int
    flat: bool
    mask: bool
    ragged: bool
    given: str
    aligned: bool
    pairs: bool
    source: str

    @property
    def per_item(self) -> int:
        """Elements to each item that is loaded."""
        return 2 if self.pairs else 1

    @property
    def items(self) -> int:
        """Items in 16 bytes."""
        return self.vector // self.per_item

    @property
    def padded_rows(self) -> int:
        """`rows`, up to a power of two."""
        return power_of_two(self.rows)

    @property
    def padded_runs(self) -> int:
        """`runs`, up to a power of two."""
        return power_of_two(self.runs)

    @property
    def inside(self) -> int:
        """Groups of one tile."""
        return self.padded_rows * self.padded_runs

    @property
    def groups(self) -> int:
        """Groups of one program."""
        return self.tiles * self.inside


@dataclass(frozen=True)
class Matrix:
    """A source as a matrix, before and after padding to whole tiles."""

    rows: int
    cols: int
    padded_rows: int
    padded_cols: int

    @staticmethod
    def of(shape: tuple[int, ...], padded: tuple[int, ...]) -> "Matrix":
        """Flatten leading axes."""
        return Matrix(prod(shape[:-1]), shape[-1], prod(padded[:-1]), padded[-1])

    @property
    def whole(self) -> bool:
        """Whether nothing was padded."""
        return (self.rows, self.cols) == (self.padded_rows, self.padded_cols)


def paired(x: Tensor) -> bool:
    """Whether ``x`` (contiguous) can be read as int32, two elements to each: aligned, with rows of even length."""
    return x.element_size() == 2 and x.shape[-1] % 2 == 0 and x.data_ptr() % 4 == 0 and x.storage_offset() % 2 == 0


def items_of(x: Tensor | None, pairs: bool) -> Tensor | None:
    """Return a view of ``x`` (or of its sign bits) as kernels load it: int32, or int16 where pairs do not fit."""
    if x is None:
        return None
    return x.view(torch.int32 if pairs or x.element_size() == 4 else torch.int16)


def power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def given(cast: Cast, cols: int) -> str:
    """Return where the maxima come from that set the scales: see `Layout`."""
    if cast.tile.is_tensor or not cast.scale.needs_amax:
        return "one"
    most = MAX_ROTATED_ROW if cast.transform else MAX_TILE
    return "row" if cast.tile.cols == 0 and cols > most else "none"


def knobs(cast: Cast, matrix: Matrix) -> Knobs:
    """Return the knobs for a cast, as measured on an H100 (`bench/quantize_gpu.py`).

    Without tiles, and for codes beyond 8 bits, 8 elements a thread keep every access side by side. In short tiles 32
    do, so that the work per tile is done once. In squares a thread takes two groups of 16, in rows eight of 8.
    """
    least, tile, source = group_multiple(cast), cast.tile, given(cast, matrix.cols)
    several = source == "none" and (tile.rows > 1 or tile.cols == 0)
    wanted = 32
    if source != "none" or cast.format.bits > 8 or tile.cols == 0 or isinstance(cast.format, Tabulated):
        wanted = 8
    elif several:
        wanted = 16
    fitting = [
        size
        for size in (32, 16, 8)
        if size <= max(wanted, least)
        and size % least == 0
        and (tile.cols == 0 or tile.cols % size == 0 or (size % tile.cols == 0 and not several))
        and matrix.padded_cols % size == 0
    ]
    group = fitting[0] if fitting else least
    if not several:
        groups = 2048 // group
        return Knobs(group, groups, max(groups // 32, 1) if group == 32 else 4)
    inside = power_of_two(tile.rows) * power_of_two(-(-(tile.cols or matrix.padded_cols) // group))
    groups = max(128 if tile.cols == 0 else 512, inside)
    if tile.cols:
        return Knobs(group, groups, min(max(groups * group // 1024, 1), 16))
    # A program that holds a whole row waits for it, and others hide that: room for three on a multiprocessor.
    short = cast.rounding.random and isinstance(cast.format, Minifloat) and groups * group > 1 << 13
    limit = 80 if short and cast.transform is None else None
    return Knobs(group, groups, min(max(groups * group // 2048, 1), 16), limit)


def layout(cast: Cast, matrix: Matrix, x: Tensor, chosen: Knobs) -> tuple[Layout, tuple[int, int]]:
    """Return the layout of one program and the grid."""
    source, size, tile = given(cast, matrix.cols), chosen.group, cast.tile
    rows, cols = (tile.rows, tile.cols or matrix.padded_cols) if source == "none" else (1, size)
    per_group = size // cols if cols < size and tile.cols else 1
    runs = 1 if per_group > 1 else -(-cols // size)
    whole = matrix.padded_cols % size == 0 and matrix.whole
    flat = whole and rows == 1 and runs == power_of_two(runs) and source != "row"
    across = -(-matrix.padded_cols // max(size, cols))  # tiles, or groups of several, in one row of tiles
    if flat:
        across *= matrix.rows
    inside = power_of_two(rows) * power_of_two(runs)
    tiles = max(1, min(chosen.groups // inside, power_of_two(across)))
    made = Layout(
        group=size,
        vector=16 // x.element_size(),
        tiles=tiles,
        rows=rows,
        runs=runs,
        per_group=per_group,
        cols=min(cols, size) if tile.cols else size,  # a row may end before its group does
        flat=flat,
        mask=not whole or across % tiles != 0 or rows * runs != inside,
        ragged=matrix.padded_cols % size != 0 or matrix.padded_cols * cast.format.bits % WORD != 0,
        given=source,
        aligned=matrix.padded_cols % 8 == 0,
        pairs=paired(x),
        source=dtype_name(x.dtype),
    )
    return made, (-(-across // tiles), 1) if flat else (matrix.padded_rows // rows, -(-across // tiles))


def amax_layout(cast: Cast, matrix: Matrix, x: Tensor, by_row: bool) -> tuple[Layout, tuple[int, int]]:
    """Return layout and grid of a pass over maxima: of the whole tensor, or of each row."""
    size = min(max(8, cast.transform.size if cast.transform else 1), 32)
    flat = matrix.whole and matrix.cols % size == 0 and not by_row
    across = -(-matrix.padded_cols // size) * (matrix.rows if flat else 1)
    tiles = min(AMAX_GROUPS * 8 // size, power_of_two(across))
    made = Layout(
        group=size,
        vector=16 // x.element_size(),
        tiles=tiles,
        rows=1,
        runs=1,
        per_group=1,
        cols=size,
        flat=flat,
        mask=not flat or across % tiles != 0,
        ragged=False,
        given="row" if by_row else "one",
        aligned=False,
        pairs=paired(x),
        source=dtype_name(x.dtype),
    )
    return made, (-(-across // tiles), 1) if flat else (matrix.rows, -(-across // tiles))


AMAX_GROUPS = 2048  # of 8 elements in a program of 8 warps: few atomics, many loads under way

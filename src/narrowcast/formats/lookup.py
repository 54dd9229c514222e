"""Tables of the formats that are known by their values: which slot a number belongs to, and what the slot holds.

Slots are the values in ascending order, what lies beyond them, and a NaN at either end. A table is made once per
format, rounding mode, dtype and device, and compiled code takes it as a constant.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from narrowcast.formats.ladder import Floats, Integers, Ladder, cuts, floors, half_way, keys, starts
from narrowcast.formats.rounding import Rounding

if TYPE_CHECKING:
    from narrowcast.formats.tabulated import Tabulated

T = TypeVar("T")
Maker = TypeVar("Maker", bound=Callable[..., object])


def constant(make: Maker) -> Maker:
    """Mark a function whose result compiled code takes as a constant, after guarding the identity of its arguments.

    The result must be a tuple: the compiler (torch 2.13) gives all bare tensors of one function the same name. This is
    what `torch.compiler.assume_constant_result` does, but for importing the compiler at once.
    """
    make._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return make


class Ends(NamedTuple):
    """Facts of a ladder that are asked for often."""

    lowest: float
    highest: float
    smallest: float
    last_step: float


class Lookup(NamedTuple):
    """Where each number goes under one rounding mode.

    Attributes:
        start: int32 ``[65536]``: first slot that numbers with these 16 leading key bits (from -32768 up) can reach.
        bound: int32 or int64: the key that a number must exceed to reach each slot.
        doublings: the last slot it can reach is less than ``2**doublings`` further.
    """

    start: Tensor
    bound: Tensor
    doublings: int


class Slots(NamedTuple):
    """What slots and codes stand for.

    Attributes:
        values: float32, of each slot.
        codes: of the format's code dtype, of each slot.
        decoded: float32 ``[2**bits]``, of each code.
    """

    values: Tensor
    codes: Tensor
    decoded: Tensor


class Cells(NamedTuple):
    """The cell above each slot, for modes that need the place within it.

    Attributes:
        near: float64, its value nearer to zero.
        width: float64; infinite where there is no cell.
        step: int32, 1 where the magnitude grows upwards, -1 where it grows downwards, 0 where there is no cell.
        level: int32, of ``near``: steps from zero, up to 3 (`Ladder.level`).
        lowest, highest: beyond these, numbers count as these.
    """

    near: Tensor
    width: Tensor
    step: Tensor
    level: Tensor
    lowest: float
    highest: float


def search(x: Tensor, table: Lookup) -> Tensor:
    """Return the slot (int32) of each float32 or float64 number."""
    if x.dtype == torch.float64:
        bits = x.view(torch.int64)
        key = (bits >> 63).bitwise_and_(0x7FFFFFFFFFFFFFFF).bitwise_xor_(bits)
        prefix = key >> 48
    else:
        bits = x.view(torch.int32)
        key = (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)
        prefix = key >> 16
    slot = at(table.start, prefix.add_(1 << 15))
    for doubling in reversed(range(table.doublings)):
        further = at(table.bound, slot + (1 << doubling))
        slot = slot + ((key > further).int() << doubling if doubling else (key > further).int())
    return slot


def at(table: Tensor, index: Tensor) -> Tensor:
    """Return ``table[index]``: a quarter of the time of indexing on a CPU, eager (2.5 against 10 ns an element)."""
    return table.index_select(0, index.reshape(-1)).view(index.shape)


@constant
def ends(fmt: "Tabulated") -> Ends:
    """Return the ends of the ladder of ``fmt``."""

    def make() -> Ends:
        values = fmt.ladder().values
        return Ends(float(values[0]), float(values[-1]), float(values[values > 0][0]), float(values[-1] - values[-2]))

    return _once(fmt, "ends", make)


@constant
def lookup(fmt: "Tabulated", rounding: Rounding, dtype: torch.dtype, device: torch.device) -> Lookup:
    """Return the search table of ``fmt`` for ``dtype``: the cuts of ``rounding``, or of down if it takes draws."""
    wide = dtype == torch.float64

    def make() -> Lookup:
        first = _first_keys(fmt, rounding, wide)
        start, doublings = starts(first, wide)
        bound = np.append(first - (first > first[0]), np.full(1 << doublings, np.iinfo(np.int64).max))
        bound = bound if wide else bound.clip(max=np.iinfo(np.int32).max).astype(np.int32)
        return Lookup(_tensor(start.astype(np.int32), device), _tensor(bound, device), doublings)

    return _once(fmt, (rounding.overflow if rounding.drawn else rounding, wide, device), make)


@constant
def slots(fmt: "Tabulated", device: torch.device) -> Slots:
    """Return what each slot and each code stands for."""

    def make() -> Slots:
        values, codes = _slot_table(fmt)
        decoded = np.full(1 << fmt.bits, np.nan)
        held = slice(1, -1) if fmt.nan_code is None else slice(None)
        decoded[codes[held]] = values[held]
        for code, value in fmt.duplicates.items():
            decoded[code] = value
        of_slot, of_code = (_tensor(v.astype(np.float32), device) for v in (values, decoded))
        return Slots(of_slot, _tensor(codes, device).to(fmt.code_dtype), of_code)

    return _once(fmt, ("slots", device), make)


@constant
def cells(fmt: "Tabulated", device: torch.device) -> Cells:
    """Return the cells of ``fmt`` for the random modes."""

    def make() -> Cells:
        rungs = _rungs(fmt)
        down = rungs.negative & np.isfinite(rungs.values[:-1])
        near = np.where(down, rungs.values[1:], rungs.values[:-1])
        width = np.diff(rungs.values)
        width[width == 0] = np.inf
        near[~np.isfinite(near)] = 0.0
        level = np.where(down, rungs.level[1:], rungs.level[:-1])
        finite = rungs.values[np.isfinite(rungs.values)]

        def padded(table: np.ndarray[Any, Any], end: float) -> Tensor:  # a NaN below; above, the last value and a NaN
            return _tensor(np.concatenate([[end], table, [end, end]]).astype(table.dtype), device)

        step = np.where(np.isinf(width), 0, np.where(down, -1, 1)).astype(np.int32)
        return Cells(
            padded(near, 0.0), padded(width, np.inf), padded(step, 0), padded(level.astype(np.int32), 0),
            float(finite[0]), float(finite[-1]),
        )  # fmt: skip

    return _once(fmt, ("cells", device), make)


def _rungs(fmt: "Tabulated") -> Ladder:
    """Return the ladder with what lies beyond as its end rungs."""
    ladder, beyond = fmt.ladder(), fmt.beyond
    if beyond is None:
        return ladder
    low = 1 if ladder.values[0] < 0 else 0
    values = np.concatenate([[-beyond.rung] * low, ladder.values, [beyond.rung]])
    codes = np.concatenate([[beyond.negative] * low, ladder.codes, [beyond.positive]])
    with np.errstate(invalid="ignore"):
        outer, exact = half_way(values)
    inner = slice(low, len(values) - 2)
    outer[inner], exact[inner] = ladder.middles, ladder.ties
    return Ladder(values, codes, outer, exact)


def _first_keys(fmt: "Tabulated", rounding: Rounding, wide: bool) -> Integers:
    """Return the lowest key of each slot, ascending."""
    rungs = _rungs(fmt)
    low, high = keys(np.array([-np.inf, np.inf]), wide)
    between = floors(rungs, wide) if rounding.drawn else cuts(rungs, rounding, wide)
    if fmt.beyond is not None:
        leaves = rounding.leaves(_tensor(np.array([0, -1], dtype=np.int32), torch.device("cpu"))).tolist()
        open_ = math.isfinite(fmt.beyond.rung)
        if not (leaves[0] and open_):
            between[-1] = high
        if fmt.signed and not (leaves[1] and open_):
            between[0] = low + 1
    bottom = np.iinfo(np.int64 if wide else np.int32).min
    return np.concatenate([[bottom, low], between, [high + 1]])


def _slot_table(fmt: "Tabulated") -> tuple[Floats, Integers]:
    """Return value and code of each slot."""
    rungs, beyond = _rungs(fmt), fmt.beyond
    values = rungs.values.copy()
    if beyond is not None:
        values[-1] = beyond.value
        if fmt.signed:
            values[0] = -beyond.value
    magnitudes = np.abs(rungs.values)
    zero = rungs.codes[np.flatnonzero(magnitudes == magnitudes.min())[-1]]
    nan = zero if fmt.nan_code is None else fmt.nan_code
    return np.concatenate([[np.nan], values, [np.nan]]), np.concatenate([[nan], rungs.codes, [nan]])


def _tensor(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _once(fmt: "Tabulated", key: object, make: Callable[[], T]) -> T:
    """Return what ``make`` returns, made once per format and key."""
    if key not in fmt.tables:
        fmt.tables[key] = make()
    found: T = fmt.tables[key]
    return found

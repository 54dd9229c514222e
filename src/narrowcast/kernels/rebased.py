"""Narrow elements under power-of-two block scales (MXFP4, MXFP6) on FP8 units, exactly where a row's scales allow it.

    element * 2**e  =  (element * 2**(e - base)) * 2**base        base: one exponent for each row

The bracket is a code of e4m3fn or e5m2 if no block of the row lies too far from the others; 2**base is the row's
float32 scale, and the library's row-scaled product does the rest. How far that may be is found by trying every element
at every shift (`shifts`): for E2M1 14 binades in e4m3fn and 28 in e5m2, which one operand of two may be; 11 for E2M3, 9
for E3M2; none for E4M3, so MXFP8 stays in bfloat16. The elements that are there decide: zeros fit anywhere, and a
block whose scale is NaN becomes codes of NaN.

Whether the data fit is known when they are, so each product asks: one pass over either operand writes FP8 codes and
what each row lacks, and one number is read back, for which the host waits. Where a row does not fit, the product is
small (`plan.LEAST`), or a CUDA graph is being captured, in which nothing can be read back, both operands are decoded to
bfloat16 instead, exactly as well. `tally` counts these, and names the last row that did not fit. What is exact are the
operands; the FP8 units' sums lose what their accumulator loses, as under any FP8 recipe.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from narrowcast.formats import format, unpack
from narrowcast.kernels.gemm import gemm as multiplied
from narrowcast.kernels.plan import REBASED, Plan
from narrowcast.kernels.shifts import REACH, limits, shifted
from narrowcast.quantize import QTensor
from narrowcast.quantize import cast as cast_of
from narrowcast.scaling import PowerOfTwo

#: the largest exponent of a row's scale: two of them take no sum out of float32's range where the product stays in it
SAFE = 60
SIXTEEN = Plan("bfloat16", "bfloat16", "bfloat16")


class Tables(NamedTuple):
    """What a byte of codes becomes; a byte is two packed codes of 4 bits, or else one code.

    Attributes:
        limits: int32 ``[256]``: the largest shift at which it is exact in the carrier, above 16 bits of the smallest.
        codes: int16 or uint8 ``[2 REACH + 2, 256]``: its codes in the carrier at shifts from -REACH on; last, NaN's.
        bits: of a code in memory: 4, 6 or 8.
    """

    limits: Tensor
    codes: Tensor
    bits: int


@lru_cache(maxsize=64)
def tables(name: str, carrier: str, device: torch.device) -> Tables:
    """Return the tables of an element format (by its name) in an FP8 format."""
    fmt = format(name)
    count = 1 << fmt.bits
    byte = torch.arange(256)
    parts = (byte & 15, byte >> 4) if fmt.bits == 4 else (byte % count,)
    span = limits(fmt, carrier)
    smallest, largest = (torch.stack([span[i][p] for p in parts]) for i in (0, 1))
    both = largest.amin(0) << 16 | smallest.amax(0) & 0xFFFF
    nan = format(carrier).encode(torch.full((1, count), float("nan"))).to(torch.uint8)
    at = torch.cat([shifted(fmt, carrier), nan])
    codes = torch.stack([at[:, p] for p in parts], -1).contiguous()
    codes = codes.view(torch.int16).squeeze(-1) if len(parts) == 2 else codes.squeeze(-1)
    return Tables(both.int().to(device), codes.to(device), fmt.bits)


def rebase(
    codes: Tensor, scales: Tensor, tables: Tables, tall: int, cols: int, constant: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return FP8 codes, the rows' scales, and by how many binades each row misses: uint8 ``[R, K]``, float32, int32.

    Args:
        codes: packed, uint8 ``[R, .]``.
        scales: e8m0 codes, uint8 ``[R / tall, K / cols]``.
        tables: of the formats.
        tall, cols: of a block.
        constant: what multiplies every scale.
    """
    byte = (codes if tables.bits != 6 else unpack(codes, 6, scales.shape[1] * cols)).int()
    across = cols // 2 if tables.bits == 4 else cols
    power = scales.int().repeat_interleave(tall, 0).repeat_interleave(across, 1) - 127
    real = power != 128
    limit = tables.limits[byte]
    smallest = torch.where(real, power - (limit >> 16), -SAFE).amax(1).clamp_min(-SAFE)
    largest = torch.where(real, power - (limit << 16 >> 16), SAFE).amin(1).clamp_max(SAFE)
    base = smallest.clamp_max(SAFE)
    shift = torch.where(real, (power - base[:, None]).clamp(-REACH, REACH), REACH + 1) + REACH
    made = tables.codes[shift, byte].view(torch.uint8)
    scale = (base + 127 << 23).int().view(torch.float32)[:, None] * constant
    return made, scale, (smallest - largest).clamp_min(0).int()


def rebased(q: QTensor, carrier: str = "e4m3fn", plainly: bool = False) -> tuple[QTensor, Tensor]:
    """Return ``q`` ``[R, K]`` under one scale a row with the same values, and by how many binades each row misses.

    The second is int32 ``[R]``; where it is not 0 the row is not what it was. One Triton pass on a GPU, unless
    ``plainly``.
    """
    assert isinstance(q.cast.scale, PowerOfTwo)
    constant, codes, tile = q.cast.scale.constant, q.codes, q.cast.tile
    scales = q.scales.reshape(q.padded[0] // tile.rows, q.padded[1] // tile.cols).contiguous()
    given = (codes, scales, tables(q.cast.format.name, carrier, codes.device), tile.rows, tile.cols, constant)
    if plainly or codes.device.type != "cuda":
        codes, scale, lack = rebase(*given)
    else:
        from narrowcast.kernels.native import named
        from narrowcast.kernels.rebase import rebase as by

        with torch.cuda.device_of(codes), named("rebase", q.cast.spelling, codes):
            codes, scale, lack = by(*given)
    cast = cast_of(f"{carrier}/row/fp32")
    return replace(q, codes=codes, scales=scale, cast=cast, shape=(q.shape[0], q.padded[1]), stream=None), lack


@dataclass
class Tally:
    """How many products of operands that may be rebased ran where, since the process or the last `forget` began.

    Attributes:
        fp8: on FP8 units.
        beyond: in bfloat16, for a row did not fit.
        small: in bfloat16, for there was too little to gain.
        captured: in bfloat16, for a CUDA graph was being captured; its replays are not counted.
        last: the last row that did not fit, in words.
    """

    fp8: int = 0
    beyond: int = 0
    small: int = 0
    captured: int = 0
    last: str = ""

    @property
    def total(self) -> int:
        """All of them."""
        return self.fp8 + self.beyond + self.small + self.captured

    def __str__(self) -> str:
        reasons = ((self.beyond, self.last), (self.small, "too small to gain"), (self.captured, "captured in a graph"))
        rest = "".join(f"; {count} in bfloat16: {why}" for count, why in reasons if count)
        return f"{self.fp8} of {self.total} products on FP8 units{rest}"


_TALLY = Tally()


def tally() -> Tally:
    """Return a copy of the counts."""
    return replace(_TALLY)


def forget() -> None:
    """Begin to count anew."""
    for name, value in vars(Tally()).items():
        setattr(_TALLY, name, value)


def settled(a: QTensor, b: QTensor) -> tuple[QTensor, QTensor, Plan] | str:
    """Return what the FP8 units multiply for ``a`` and ``b``, and how; or which row does not fit.

    One of the two may be in e5m2. The host waits for the GPU; several times where not both fit e4m3fn.
    """
    (left, first), (right, second) = rebased(a), rebased(b)
    if not _worst(first, second):
        return left, right, REBASED
    if not _worst(second):
        left, first = rebased(a, "e5m2")
        return (left, right, replace(REBASED, a="e5m2")) if not _worst(first) else _miss("left", "e5m2", first)
    if not _worst(first):
        right, second = rebased(b, "e5m2")
        return (left, right, replace(REBASED, b="e5m2")) if not _worst(second) else _miss("right", "e5m2", second)
    return _miss("left", "e4m3fn", first)


def _worst(*lack: Tensor) -> int:
    return int(torch.cat(lack).amax())


def _miss(side: str, carrier: str, lack: Tensor) -> str:
    row = int(lack.argmax())
    return f"row {row} of the {side} operand misses {carrier} by {int(lack[row])} binades"


Key = tuple[str, str, int, int]
#: casts and sizes of operands whose last product did not fit e4m3fn on both sides
_MISSED: set[Key] = set()
#: those that ran in bfloat16 once on a GPU
_COMPILED: set[Key] = set()


def _key(a: QTensor, b: QTensor) -> Key:
    return (a.cast.spelling, b.cast.spelling, b.padded[0], b.padded[1])


def product(a: QTensor, b: QTensor, out: torch.dtype, alpha: float) -> Tensor | str:
    """Return the product on FP8 units, or which row does not fit.

    It is launched before the answer is there, so that the GPU works while the host waits for a number that was ready
    before it; thrown away if a row does not fit, and not launched before again until all do.
    """
    key = _key(a, b)
    if a.codes.device.type == "cuda" and key not in _MISSED:
        (left, first), (right, second) = rebased(a), rebased(b)
        answer, known = torch.empty((), dtype=torch.int32, pin_memory=True), torch.cuda.Event()
        with torch.cuda.device_of(a.codes):
            answer.copy_(torch.cat([first, second]).amax(), non_blocking=True)
            known.record()
            y = multiplied(left, right, REBASED, out, alpha, inside=True)
            known.synchronize()
        if not int(answer):
            return y
        del y
    found = settled(a, b)
    (_MISSED.discard if not isinstance(found, str) and found[2] == REBASED else _MISSED.add)(key)
    return found if isinstance(found, str) else multiplied(*found, out, alpha, inside=True)


def gemm(a: QTensor, b: QTensor, plan: Plan, out: torch.dtype, alpha: float = 1.0) -> Tensor:
    """Return what `kernels.gemm.gemm` does, on FP8 units where the operands fit; ``plan`` has a `Plan.first`."""
    casts = (a.cast.spelling, b.cast.spelling)
    made: Tensor = torch.ops.narrowcast.rebased_gemm(
        a.codes, a.scales, b.codes, b.scales, *casts, out, alpha, plan.least
    )
    rows, cols = a.shape[0], b.shape[0]
    return made if made.shape == (rows, cols) else made[:rows, :cols]


@torch.library.custom_op("narrowcast::rebased_gemm", mutates_args=())
def _rebased_gemm(
    a: Tensor,
    scales_a: Tensor,
    b: Tensor,
    scales_b: Tensor,
    cast_a: str,
    cast_b: str,
    out: torch.dtype,
    alpha: float,
    least: int,
) -> Tensor:
    left, right = _quantized(a, scales_a, cast_a), _quantized(b, scales_b, cast_b)
    if a.shape[0] * b.shape[0] * left.padded[1] < max(least, 1):
        _TALLY.small += 1
    elif a.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _TALLY.captured += 1
    else:
        if a.device.type == "cuda" and _key(left, right) not in _COMPILED:
            multiplied(left, right, SIXTEEN, out, alpha, inside=True)  # a graph captured later can compile nothing
            _COMPILED.add(_key(left, right))
        found = product(left, right, out, alpha)
        if isinstance(found, Tensor):
            _TALLY.fp8 += 1
            return found
        _TALLY.beyond += 1
        _TALLY.last = found
    return multiplied(left, right, SIXTEEN, out, alpha, inside=True)


@_rebased_gemm.register_fake
def _(a: Tensor, scales_a: object, b: Tensor, scales_b: object, cast_a: str, cast_b: str, out: torch.dtype,
      *_: object) -> Tensor:  # fmt: skip
    return a.new_empty(a.shape[0], b.shape[0], dtype=out)


def _quantized(codes: Tensor, scales: Tensor, spelling: str) -> QTensor:
    cast = cast_of(spelling)
    shape = (codes.shape[0], codes.shape[1] * 8 // cast.format.bits)
    return QTensor(codes, scales, None, cast, shape, shape, torch.float32)

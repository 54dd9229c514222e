"""Which gemms run on tensor cores, on which units, and why the others do not. Nothing here imports Triton.

FP8 units multiply e4m3fn and e5m2 under float32 scales of tensors, rows, 1x128 tiles or 128x128 squares. Codes of
another format run there too where every one of its values is a value of e4m3fn or e5m2 (e2m1fn, int4, FP6): exactly.
16-bit units take what is left, where element times block scale is exact in bfloat16: NVFP4's products of 2 and 4
significant bits, any element of at most 8 under powers of two. Tensor scales and constants multiply the sums instead.
MXFP4 and MXFP6 are tried on FP8 units first, each time that they are multiplied (`kernels.rebased`).

The library's FP8 sums, probed on an H100 (`bench/accumulator.py`): ``hopper-fp8`` with fast accumulation,
``hopper-fp8/every128/fp32`` without. A recipe's ``fp32`` gets the second. Its 16-bit sums: ``hopper-fp16``.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from narrowcast.accumulate import FP32, HOPPER_FP8, HOPPER_FP16, TIMES, Accumulator, accumulator
from narrowcast.formats import Format, format
from narrowcast.kernels.shifts import room
from narrowcast.ops import Gemm
from narrowcast.quantize import Cast
from narrowcast.scaling import Narrow, One, PowerOfTwo, TwoLevel, Wide

FP8 = ("e4m3fn", "e5m2")
PROMOTED = accumulator("hopper-fp8/every128/fp32")
SIGNIFICAND = {"bfloat16": 8, "float16": 11}  # bits of the 16-bit units' operands
BLOCKS = ("1x128", "128x128")
OURS = (("1x128", "1x128"), ("1x128", "128x128"))  # tiles that our product takes, on Hopper
#: binades by which the power-of-two scales of a row must be free to differ for FP8 units to be tried (`rebased`):
#: those of 32 normal numbers differ by 2
ROOM = 4
#: M N K from which they are, 8192 x 4096 x 4096: it saves 0.14 ms there on an H100, of which the host, which launches
#: more and waits, takes 0.1 to 0.2 where nothing else keeps the GPU busy
LEAST = 1 << 37


@dataclass(frozen=True)
class Plan:
    """How a gemm runs on tensor cores.

    Attributes:
        units: ``fp8``, or the 16-bit type that both operands become.
        a, b: what each operand's codes become: ``e4m3fn``, ``e5m2``, or the 16-bit type.
        tile_a, tile_b: how FP8 scales lie: ``tensor``, ``row``, ``1x128``, ``128x128``; empty on 16-bit units.
        fast: whether FP8 sums stay in the tensor core's own register, without promotion.
        first: what is tried first, if the data allow it (`kernels.rebased`); or None.
        least: M N K below which that is not tried.
        by: what multiplies under block scales: ``library``, ``ours`` (`kernels.block_gemm`, the same sums), or
            ``faster``: of the two, what `kernels.block_gemm.faster` expects for the size.
    """

    units: str
    a: str
    b: str
    tile_a: str = ""
    tile_b: str = ""
    fast: bool = False
    first: "Plan | None" = None
    least: int = 0
    by: str = "library"

    def __str__(self) -> str:
        if self.units != "fp8":
            plainly = f"{self.units} mm of exactly decoded operands"
            return f"{self.first} where every row's exponents fit, else {plainly}" if self.first else plainly
        tiles = self.tile_a if self.tile_a == self.tile_b else f"{self.tile_a} and {self.tile_b}"
        by = {"library": "scaled_mm", "ours": "block_gemm", "faster": "block_gemm (scaled_mm if small)"}[self.by]
        return f"{by} {self.a} x {self.b}, {tiles} scales, {'fast' if self.fast else 'split'} accumulation"

    @property
    def accumulator(self) -> Accumulator:
        """How a Hopper GPU sums, as probed."""
        return HOPPER_FP16 if self.units != "fp8" else HOPPER_FP8 if self.fast else PROMOTED


#: of narrow elements that each row has a base for (`kernels.rebased`)
REBASED = Plan("fp8", "e4m3fn", "e4m3fn", "row", "row")


def plan(gemm: Gemm) -> Plan | str:
    """Return how ``gemm``, its operands casts (no `Reuse`), runs on tensor cores; or why it does not."""
    a, b = gemm.a, gemm.b
    assert isinstance(a, Cast)
    assert isinstance(b, Cast)
    if gemm.product != TIMES:
        return f"tensor cores multiply, they have no {gemm.product}"
    if any(c.transform for c in (a, b)):
        return "a transform that is undone before the product leaves no codes to multiply"
    found = _fp8(gemm.accumulator, a, b)
    if isinstance(found, str):
        wide = _sixteen(gemm.accumulator, a, b)
        return f"{found}; {wide}" if isinstance(wide, str) else wide
    return found


def ours(plan: Plan, capability: tuple[int, int]) -> Plan:
    """Return the plan with our own product where it is faster, on GPUs of a ``capability`` that it runs on."""
    return replace(plan, by="faster") if capability == (9, 0) and (plan.tile_a, plan.tile_b) in OURS else plan


def _fp8(sums: Accumulator, a: Cast, b: Cast) -> Plan | str:
    carriers = [carrier(c.format) for c in (a, b)]
    for cast, found in zip((a, b), carriers, strict=True):
        if found is None:
            return f"{cast.format} is not exact in FP8"
    tiles = [_tile(c) for c in (a, b)]
    for cast, tile in zip((a, b), tiles, strict=True):
        if not tile:
            return f"FP8 products have no scales per {cast.tile} {cast.scale}"
    if sums not in (FP32, HOPPER_FP8, PROMOTED):
        return f"no tensor core sums by {sums}"
    if carriers == ["e5m2", "e5m2"]:
        return "the library multiplies no e5m2 by e5m2"
    if any(t in BLOCKS for t in tiles):
        if not all(t in BLOCKS for t in tiles) or tiles == ["128x128", "128x128"]:
            return f"the library has no product of {tiles[0]} and {tiles[1]} scales"
        if carriers != ["e4m3fn", "e4m3fn"]:
            return "the library multiplies blocks of e4m3fn only"
        if sums == HOPPER_FP8:
            return "the library promotes the sums of every block"
    return Plan("fp8", carriers[0] or "", carriers[1] or "", tiles[0], tiles[1], sums == HOPPER_FP8)


def _tile(cast: Cast) -> str:
    """Return how the FP8 units see a cast's scales, or nothing where they cannot."""
    name = str(cast.tile).removesuffix("+pad")
    if isinstance(cast.scale, TwoLevel) or (isinstance(cast.scale, One) and name != "tensor"):
        return ""
    return name if name in ("tensor", "row", *BLOCKS) else ""


def _sixteen(sums: Accumulator, a: Cast, b: Cast) -> Plan | str:
    if sums not in (FP32, HOPPER_FP16):
        return f"no 16-bit tensor core sums by {sums}"
    for units, bits in SIGNIFICAND.items():
        if units == "float16" and not all(c.format.name == "float16" and isinstance(c.scale, One) for c in (a, b)):
            continue  # float16's exponents are too few for block scales
        if all(0 < significant(c) <= bits for c in (a, b)):
            rebased = _rebased(a, b) if sums == FP32 and units == "bfloat16" else None
            return Plan(units, units, units, first=rebased, least=LEAST if rebased else 0)
    worst = max((a, b), key=lambda c: significant(c) or 99)
    return f"{worst.format} under {worst.tile} {worst.scale} scales is not exact in bfloat16"


def _rebased(a: Cast, b: Cast) -> Plan | None:
    """Return the product under scales of rows that power-of-two block scales may come to, depending on the data."""
    for cast in (a, b):
        if not isinstance(cast.scale, PowerOfTwo) or not in_words(cast) or room(cast.format, "e4m3fn") < ROOM:
            return None
    return REBASED


def in_words(cast: Cast) -> bool:
    """Whether whole words of codes lie under one scale, as the passes that decode a matrix read them."""
    return cast.format.bits in (4, 6, 8) and cast.tile.cols > 0 and cast.tile.cols % 8 == 0


def significant(cast: Cast) -> int:
    """Return the significant bits of an element times its block's scale, 0 where that has no small bound."""
    element = _significand(cast.format)
    if isinstance(cast.scale, One | PowerOfTwo) or (isinstance(cast.scale, Wide) and cast.tile.is_tensor):
        return element
    if isinstance(cast.scale, Narrow | TwoLevel):
        return element + cast.scale.format.precision + 1
    return 0


@lru_cache(maxsize=256)
def carrier(fmt: Format) -> str | None:
    """Return the FP8 format that has every value of ``fmt``, or None."""
    if fmt.name in FP8 and format(fmt.name) == fmt:
        return fmt.name
    if fmt.bits > 8 or bool(fmt.decode(fmt.codes()).isinf().any()):
        return None
    values = fmt.values().float()
    return next((name for name in FP8 if bool((format(name).round(values) == values).all())), None)


@lru_cache(maxsize=256)
def _significand(fmt: Format) -> int:
    """Return the most significant bits that any value of ``fmt`` has."""
    if fmt.bits > 8:
        return fmt.precision + 1
    fraction = (torch.frexp(fmt.values())[0].abs() * 2**53).long()
    lowest = (fraction & -fraction)[fraction > 0]
    return 54 - int(torch.frexp(lowest.double())[1].min()) if len(lowest) else 1

"""Codebooks: any table of values as a format, and the tables in use.

The place of a value in the table is its code. Values become float32. Rounding is to the nearest value, or by any other
mode; a value is even that is an even number of steps from zero. Beyond the ends values saturate.

The tables here are normalised to a maximum of 1 and meant for blocks scaled by their largest magnitude, as in
``nf4/1x64/fp32``. bitsandbytes breaks ties (which all but never occur) downwards for nf4 and towards zero for fp4, and
packs element 0 into the high nibble, where `packing` uses the low one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats.format import Layout
from narrowcast.formats.ladder import Ladder, half_way
from narrowcast.formats.tabulated import Tabulated

_MOST = 1 << 16


@dataclass(frozen=True)
class Codebook(Tabulated):
    """A format given by the value of each code.

    Attributes:
        name: e.g. ``"nf4"``.
        table: value of each code, 2 to 65,536 of them, finite in float32. A value that occurs again is written as its
            first code. NaN marks a code that stands for nothing; NaNs are written as the first of them. -0.0 and 0.0
            are two values.
    """

    name: str
    table: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.table) <= _MOST:
            raise InputError(f"format {self.name}: a codebook has 2 to {_MOST} values, found {len(self.table)}")
        held = [v for v in self.table if not math.isnan(v)]
        if not all(abs(v) <= torch.finfo(torch.float32).max for v in held):
            raise InputError(f"format {self.name}: every value must be finite in float32; mark unused codes with nan")
        if len({*map(np.float32, held)}) < 2 or max(held) <= 0:
            raise InputError(f"format {self.name}: a codebook needs two different values, one of them positive")

    @property
    def bits(self) -> int:
        """Width of one code in bits."""
        return (len(self.table) - 1).bit_length()

    @property
    def layout(self) -> Layout:
        """The code is an index."""
        specials = "none" if self.nan_code is None else "nan"
        return Layout("codebook", int(self.signed), specials=specials, note=f"a table of {len(self.table)} values")

    @property
    def nan_code(self) -> int | None:
        """The first code that stands for nothing, or None."""
        return next((code for code, value in enumerate(self.table) if math.isnan(value)), None)

    @property
    def duplicates(self) -> dict[int, float]:
        """Codes of values that an earlier code has."""
        first = self._first_codes()
        values = ((code, float(np.float32(v))) for code, v in enumerate(self.table) if not math.isnan(v))
        return {code: v for code, v in values if first[_identity(v)] != code}

    def ladder(self) -> Ladder:
        """Return the different values in order; cells are halved in value."""
        ordered = sorted(self._first_codes().items())
        values = np.array([value for (value, _), _ in ordered])
        return Ladder(values, np.array([code for _, code in ordered]), *half_way(values))

    def _first_codes(self) -> dict[tuple[float, bool], int]:
        """Return the first code of each different value."""
        first: dict[tuple[float, bool], int] = {}
        for code, value in enumerate(self.table):
            if not math.isnan(value):
                first.setdefault(_identity(value), code)
        return first


def _identity(value: float) -> tuple[float, bool]:
    """Return a value as float32, and whether its sign is plus: -0.0 sorts before 0.0."""
    narrow = float(np.float32(value))
    return narrow, math.copysign(1.0, narrow) > 0


def codebook(values: Iterable[float]) -> Codebook:
    """Return the codebook of ``values`` (by code) under the name that spells it: ``table(-1,0,0.5,1)``."""
    table = tuple(float(np.float32(v)) for v in values)
    return Codebook(f"table({','.join(_shortest(v) for v in table)})", table)


def _shortest(value: float) -> str:
    """Return the fewest digits that give the same float32 back: ``0.1``, ``1``, ``-0``."""
    return str(np.float32(value)).removesuffix(".0")


def from_quantiles(samples: Tensor, bits: int) -> Codebook:
    """Return the codebook of ``2**bits`` values, 2 to 12 bits, that ``samples`` fill evenly, and 0; the largest is 1.

    The values lie between neighbouring quantiles i / (2**bits + 1), as in Dettmers & Zettlemoyer 2023, "The case for
    4-bit precision", appendix; so the format fits samples divided by their block's largest magnitude. InputError where
    the samples are empty, not finite or all zero.
    """
    if not 2 <= bits <= 12:
        raise InputError(f"a codebook of quantiles has 2 to 12 bits, found {bits}")
    x = samples.detach().double().flatten().cpu().numpy()
    if not x.size or not np.isfinite(x).all() or not x.any():
        raise InputError(f"a codebook of quantiles needs finite samples that are not all zero, found {x.size} samples")
    count = 1 << bits
    quantiles = np.quantile(x, np.arange(1, count + 1) / (count + 1))
    middles = (quantiles[:-1] + quantiles[1:]) / 2
    return codebook(np.sort(np.append(middles / np.abs(middles).max(), 0.0)).astype(np.float32).tolist())


def dynamic(bits: int) -> Codebook:
    """Return the signed dynamic map of 3 to 8 bits: a decimal exponent by leading zeros, the rest a linear fraction.

    For each exponent -i there are 2**(bits - 2 - i) magnitudes, the middles of as many equal parts of [0.1, 1]; 0 and
    1 are added. Source: Dettmers 2015, "8-bit approximations for parallelism in deep learning"; bitsandbytes, whose
    values differ from these by float32's rounding at most.
    """
    if not 3 <= bits <= 8:
        raise InputError(f"format dynamic{bits}: the dynamic map has 3 to 8 bits, found {bits}")
    values = [Fraction(0), Fraction(1)]
    for i in range(bits - 1):
        parts = 1 << i
        means = [Fraction(1, 10) + Fraction(9, 10) * Fraction(2 * j + 1, 2 * parts) for j in range(parts)]
        values += [sign * mean / 10 ** (bits - 2 - i) for mean in means for sign in (1, -1)]
    return Codebook(f"dynamic{bits}", tuple(float(np.float32(float(v))) for v in sorted(values)))


def normalised_float(exponent: int, mantissa: int) -> Codebook:
    """Return the float of ``exponent`` and ``mantissa`` bits, no specials, as a codebook whose largest value is 1.

    The exponent counts downwards from its largest value, and subnormals lie ``2**(exponent - 1) + 1`` binades below
    one: half of them all but coincide with zero. Two exponent bits and one of mantissa are bitsandbytes' FP4.
    Source: Dettmers & Zettlemoyer 2023, "The case for 4-bit precision", section 2.2.
    """
    bits = 1 + exponent + mantissa
    if not (1 <= exponent <= 6 and mantissa >= 0 and bits <= 8):
        raise InputError(f"a normalised float has 1 to 6 exponent bits and 8 in all, found {exponent} and {mantissa}")
    bias = (1 << (exponent - 1)) + 1
    parts = [Fraction(f, 1 << mantissa) for f in range(1 << mantissa)]
    sub = [Fraction(1, 1 << bias) * f for f in parts]
    values = sub + [Fraction(2) ** (bias + 1 - e) * (1 + f) for e in range(1, 1 << exponent) for f in parts]
    table = [float(np.float32(float(v / max(values)))) for v in values]
    return Codebook(f"float{bits}_e{exponent}", (*table, *(-v for v in table)))


CODEBOOKS = (
    # Dettmers et al. 2023, "QLoRA": quantiles of the normal, with an exact zero and one more positive value
    Codebook(
        "nf4",
        (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
         -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
         0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
    # Yoshida 2023, "NF4 isn't information theoretically optimal": for blocks of 64, in bitsandbytes' order of codes
    Codebook(
        "af4",
        (1.0, 0.72424863, 0.55496234, 0.42563882, 0.31675666, 0.21961274, 0.12934483, 0.04273164, 0.0, -0.04934812,
         -0.14982478, -0.25607552, -0.3736951, -0.51243739, -0.69441008, -1.0),
    ),
    # bitsandbytes' own FP4: two exponent bits that count downwards, one mantissa bit; not OCP's E2M1
    Codebook("fp4_bnb", tuple(sign * k / 12 for sign in (1.0, -1.0) for k in (0, 0.0625, 8, 12, 4, 6, 2, 3))),
    # bitsandbytes' INT4: the codes count downwards, and zero has two
    Codebook("int4_bnb", tuple(k / 7 for k in (7, 6, 5, 4, 3, 2, 1, 0, 0, -1, -2, -3, -4, -5, -6, -7))),
    dynamic(8),
)  # fmt: skip

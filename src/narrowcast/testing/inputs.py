"""The inputs that tell number formats apart: every bfloat16 and float16, and each float32 at which a rounding turns.

Where a format's rounding turns from one value to the next is found by bisection over the bits of float32, so the
corners are right for any family of formats: midpoints for a minifloat, something else for a posit or a codebook.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from narrowcast.formats import NEAREST_EVEN, Format, Rounding, rounding

FLOAT32_MAX = torch.finfo(torch.float32).max
CLASSES = (
    "NaN",
    "negative",  # of unsigned formats alone
    "infinity",
    "zero",
    "value of a code",
    "tie",
    "beyond the maximum",
    "beside a threshold",
    "below the smallest",
    "subnormal",
    "other",
)
_LISTED_BITS = 16  # widest format whose every value is tried; of wider ones a sample is
_SAMPLE = 1 << 14
_AWAY, _ZERO = rounding("nearest-away"), rounding("nearest-zero")
#: bits of NaNs that a careless shift turns into infinity (payload cut off) or zero (rounding carries into the sign)
_NANS = (0x7F800001, 0x7F807FFF, 0x7FFFFFFF, 0x7FC00000)


@dataclass(frozen=True)
class Given:
    """What a foreign encoder is given: values that ``dtype`` holds, of every class but those in ``without``."""

    dtype: torch.dtype = torch.float32
    without: frozenset[str] = frozenset()


def of_bits(bits: "list[int] | Tensor") -> Tensor:
    """Return the float32 with these unsigned 32-bit patterns (ints, or an integer tensor)."""
    wide = torch.as_tensor(bits, dtype=torch.int64)
    return torch.where(wide >= 1 << 31, wide - (1 << 32), wide).int().view(torch.float32)


def bits_of(x: Tensor) -> Tensor:
    """Return the bits of float32 ``x`` as int64 in [0, 2**32)."""
    return x.view(torch.int32).long() & 0xFFFFFFFF


def rank(x: Tensor) -> Tensor:
    """Return the place (int64) of each float32 among all of them; both zeros have place 0."""
    bits = x.view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def of_rank(place: Tensor) -> Tensor:
    """Return the float32 at ``place``, finite ones only: places beyond are clamped."""
    place = place.clamp(-0x7F7FFFFF, 0x7F7FFFFF)
    return of_bits(torch.where(place < 0, -place + (1 << 31), place))


def beside(x: Tensor, steps: int) -> Tensor:
    """Return the float32 that lies ``steps`` floats above ``x`` (below, where negative)."""
    return of_rank(rank(x) + steps)


def every_half() -> Tensor:
    """Return every bfloat16 and every float16 bit pattern as float32 [131072]."""
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    return torch.cat([patterns.view(torch.bfloat16).float(), patterns.view(torch.float16).float()])


def grid(fmt: Format) -> Tensor:
    """Return the finite values of ``fmt``, float32 ascending; neighbouring pairs all over a format beyond 16 bits."""
    if fmt.bits <= _LISTED_BITS:
        return fmt.values().float()
    some = torch.linspace(0, (1 << fmt.bits) - 2, _SAMPLE, dtype=torch.float64).long()
    codes = torch.cat([some, some + 1])
    values = fmt.decode(torch.where(codes >= 1 << 31, codes - (1 << 32), codes).int())
    kept: Tensor = torch.unique(values[values.isfinite()] + 0.0)
    return kept


def thresholds(fmt: Format, mode: Rounding) -> Tensor:
    """Return, between each pair of neighbours of the grid, the least float32 that ``mode`` sends to the upper one."""
    values = grid(fmt)
    below, above, upper = rank(values[:-1]), rank(values[1:]), values[1:]
    while bool((above - below > 1).any()):
        middle = (below + above) // 2
        up = fmt.round(of_rank(middle), mode) >= upper
        above, below = torch.where(up, middle, above), torch.where(up, below, middle)
    return of_rank(above)


def _ends(fmt: Format) -> Tensor:
    """Return what lies about the ends of the range: of the format, of float16 and bfloat16, and of float32."""
    values = grid(fmt).double()
    step = values[-1] - values[-2]
    over = fmt.max + step * torch.tensor([0.25, 0.5, 0.75, 1.0, 1.5, 2.0], dtype=torch.float64)
    marks = [fmt.max, fmt.smallest, fmt.smallest / 2, fmt.smallest_normal, 2.0 ** (fmt.top_exponent + 1)]
    others = [65504.0, 65520.0, 2.0**-14, 2.0**-25, 2.0**-126, 2.0**-127, 2.0**-133, 2.0**-149, 3.3961775e38]
    double = torch.cat([over, torch.tensor([*marks, *others, FLOAT32_MAX], dtype=torch.float64)])
    return double.clamp_max(FLOAT32_MAX).float()


def corners(fmt: Format, mode: Rounding = NEAREST_EVEN) -> Tensor:
    """Return the finite float32 around which ``fmt`` changes its mind, each with its neighbours, of both signs."""
    points = torch.cat([grid(fmt), thresholds(fmt, _AWAY), thresholds(fmt, mode), _ends(fmt), torch.zeros(1)])
    around = torch.cat([beside(points, step) for step in (-2, -1, 0, 1, 2)])
    return torch.cat([around, -around])


@lru_cache(maxsize=8)
def inputs(fmt: Format, mode: Rounding = NEAREST_EVEN, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return every input to try, float32, each once, by ascending magnitude; those that ``dtype`` holds exactly."""
    nans = of_bits([*_NANS, *(bits | 1 << 31 for bits in _NANS)])
    bits = bits_of(torch.cat([corners(fmt, mode), every_half(), nans]))
    turned = torch.unique((bits << 1 & 0xFFFFFFFF) | bits >> 31)  # the sign last
    x = of_bits(turned >> 1 | (turned & 1) << 31)
    return x[x.isnan() | (x.to(dtype).float() == x)]


def classify(x: Tensor, fmt: Format, mode: Rounding = NEAREST_EVEN) -> Tensor:
    """Return the class of each float32 input (int64, an index of `CLASSES`): the first that applies."""
    size, finite = x.abs(), torch.where(x.isfinite(), x, 0.0)
    exact = fmt.round(finite, mode)
    unsigned = float(grid(fmt)[0]) >= 0
    tests = (
        x.isnan(),
        (x < 0) & unsigned,
        x.isinf(),
        x == 0,
        exact == finite,
        fmt.round(finite, _AWAY) != fmt.round(finite, _ZERO),
        size > fmt.max,
        fmt.round(beside(finite, -2), mode) != fmt.round(beside(finite, 2), mode),
        size < fmt.smallest,
        size < fmt.smallest_normal,
    )
    found = torch.full(x.shape, len(CLASSES) - 1)
    for index in reversed(range(len(tests))):
        found.masked_fill_(tests[index], index)
    return found

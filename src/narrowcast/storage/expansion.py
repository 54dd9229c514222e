"""COAT's dynamic range expansion: each group is stretched by a power until it fills an 8-bit float's range.

Adam's moments span few binades within a group of neighbours, far fewer than e4m3fn has; raising magnitudes to a power
k stretches them, and rounding to 3 bits after that costs (1 + 2**-4)**(1/k) - 1 instead of 2**-4. Of a group with
largest magnitude M and smallest m0 other than zero:

    k = floor(16 * log2(max**2 / 2) / log2(M / m0)) / 16         1/16 <= k <= 255/16
    code = round(max * (|x| / M)**k)        |x| ~ M * (code / max)**(1/k)

Source: Xi et al. 2025, "COAT", section 4, and its released kernel, which keeps three float32 a group: scale, k and a
centre c = sqrt(M m0). The centre cancels in (|x|/c)**k / ((M/c)**k / max), so M and 16 k, 5 bytes, say the same; the
largest magnitude then comes back exactly. The release also takes k from a minimum that zeros can pull down to 1e-30;
here zeros do not count.

Powers are made of additions and multiplications alone (`log2`, `exp2`: within 3e-6), so that every device gives
the same bits; a thousandth of half a step of e4m3fn, even at k = 16.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Format, Minifloat, Stream
from narrowcast.scaling.scales import FLOAT32_MAX, SMALLEST, divided
from narrowcast.storage.storage import Storage, Stored

SIXTEENTHS = 16  # k is a multiple of 1/16
_MOST = 255  # sixteenths: one byte
#: log2(1 + f) = f (L0 + L1 f + ...) for sqrt(1/2) <= 1 + f < sqrt(2), within 2.2e-6
LOG2 = (1.4427134990692139, -0.7211317420005798, 0.4793483316898346, -0.36749252676963806, 0.3221515417098999,
        -0.2065761238336563)  # fmt: skip
#: 2**f = 1 + f (E0 + E1 f + ...) for |f| <= 1/2, within 2.9e-6
EXP2 = (0.6931241750717163, 0.24024099111557007, 0.055906470865011215, 0.009582847356796265)
_SQRT_HALF = 0x3F3504F3  # bits of sqrt(1/2)
_ROUNDER = 12582912.0  # 1.5 * 2**23: adding it rounds to an integer, which then stands in the last bits
_ROUNDER_BITS = 0x4B400000
LOWEST = -126.0  # powers of two below this are not told apart


def polynomial(f: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Return ``f (c0 + f (c1 + ...))``, each product and sum rounded to float32."""
    total = torch.full_like(f, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total.mul_(f).add_(c)
    return total.mul_(f)


def log2(x: Tensor) -> Tensor:
    """Return log2 of positive normal float32 numbers within 2.2e-6, the same bits everywhere; log2(1) = 0."""
    bits = x.view(torch.int32)
    exponent = (bits - _SQRT_HALF) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    return polynomial(f, LOG2).add_(exponent.float())


def exp2(x: Tensor) -> Tensor:
    """Return 2**x for float32 -126 <= x <= 0 within 2.9e-6 of it, the same bits everywhere; below -126 as -126."""
    x = x.clamp_min(LOWEST)
    shifted = x + _ROUNDER
    power = polynomial(x - (shifted - _ROUNDER), EXP2).add_(1.0)
    return (power.view(torch.int32) + ((shifted.view(torch.int32) - _ROUNDER_BITS) << 23)).view(torch.float32)


@dataclass(frozen=True)
class Expanded(Storage):
    """Codes of ``format`` after expansion: parts ``codes``, ``largest`` (M, float32) and ``powers`` (16 k, a byte).

    Attributes:
        format: a signed 8-bit float that saturates: `e4m3fn`, as the paper recommends for both moments, or `e5m2`.
        group: consecutive elements that share M and k.

    A group whose largest magnitude is below 2**-126 becomes zero; one with a NaN or an infinity comes back as NaN.
    """

    format: Format
    group: int = 128

    def __post_init__(self) -> None:
        fits = isinstance(self.format, Minifloat) and self.format.bits == 8 and self.format.signed
        if not fits or self.group < 1:
            raise InputError(f"storage {self}: expected a signed 8-bit float and a positive group")

    def store(self, x: Tensor, stream: Stream | None = None) -> Stored:
        """Return ``codes``, ``largest`` and ``powers``."""
        groups = F.pad(x, (0, -x.numel() % self.group)).view(-1, self.group)
        magnitude = groups.abs()
        largest = magnitude.amax(1, keepdim=True)
        largest = torch.where(largest < SMALLEST, 0.0, largest)
        finite = largest < math.inf  # not for NaN
        smallest = magnitude.masked_fill(magnitude == 0, math.inf).amin(1, keepdim=True)
        sixteenths = self.sixteenths(largest, smallest, finite)
        share = magnitude * largest.reciprocal().clamp_max(FLOAT32_MAX)
        stretched = exp2(log2(share.clamp_min(SMALLEST)) * (sixteenths * (1 / SIXTEENTHS)))
        y = stretched.mul_(self.format.max)
        y = torch.where((magnitude == 0) | (largest == 0) | ~finite, 0.0, y).copysign_(groups)
        codes = self.format.encode(y)
        largest = torch.where(finite, largest, math.nan)
        return {"codes": codes.flatten(), "largest": largest.flatten(), "powers": sixteenths.to(torch.uint8).flatten()}

    def sixteenths(self, largest: Tensor, smallest: Tensor, finite: Tensor) -> Tensor:
        """Return 16 k as float32 integers."""
        some = finite & (largest > 0)
        ratio = torch.where(some, largest, 1.0) / torch.where(some, smallest, 1.0)
        binades = log2(ratio.clamp(1.0, FLOAT32_MAX)).clamp_min(2.0**-20)
        return divided(SIXTEENTHS * self.binades, binades).floor_().clamp_(1, _MOST)

    def load(self, stored: Mapping[str, Tensor], count: int) -> Tensor:
        """Return the values."""
        q = self.format.decode(stored["codes"]).view(-1, self.group)
        magnitude = q.abs()
        inverse = divided(float(SIXTEENTHS), stored["powers"].float()).view(-1, 1)
        depth = log2(magnitude.clamp_min(SMALLEST)).sub_(self.log2_max) * inverse
        share = torch.where(magnitude == 0, 0.0, exp2(depth)).copysign_(q)
        return share.mul_(stored["largest"].view(-1, 1)).flatten()[:count]

    def bits_per_element(self, count: int) -> float:
        """Return 8 and a group's share of 40 bits."""
        return 8.0 + 40.0 * -(-count // self.group) / count if count else 8.0

    @property
    def binades(self) -> float:
        """log2(max**2 / 2): what a group is stretched to, 16.61 of e4m3fn's 17.8 binades."""
        return 2 * math.log2(self.format.max) - 1

    @property
    def log2_max(self) -> float:
        """`log2` of the format's largest value."""
        return float(log2(torch.tensor([self.format.max])))

    def __str__(self) -> str:
        return f"{self.format}/1x{self.group}+pad/expanded"

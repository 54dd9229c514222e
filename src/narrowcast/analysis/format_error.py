"""What a format or a cast costs: on a distribution, on a matrix, and at every tile size.

A format alone is judged with the best fixed scale: values are divided by ``scale``, rounded, multiplied back, and the
scale with the least mean squared error wins. The expectation is taken over equally probable quantiles of the
distribution, so it draws nothing and repeats exactly. A cast brings its own tiles and scales, so it is applied to a
seeded sample, cut into tiles as the cast says.

Mean squared error is relative to the variance, 1; so SQNR = -10 log10(MSE) decibels. 6.02 dB are one bit.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from narrowcast.analysis.distributions import NORMAL, QUANTILES, Distribution
from narrowcast.analysis.loss import narrowed
from narrowcast.formats import Format
from narrowcast.quantize import Cast
from narrowcast.scaling import ROW, One, Tile, Wide, tile

SAMPLE = (256, 1024)  # rows and columns of the sample that a cast is judged on
#: the tile sizes that every format is judged at; sizes that do not divide a matrix are filled up with zeros
TILES = tuple(tile(name) for name in ("tensor", "row", "1x128+pad", "1x64+pad", "1x32+pad", "1x16+pad"))
_COARSE = 64  # trial scales of each round of the search
_ROUNDS = 3
_SPANS_FLOAT32 = 126  # top exponent from which on a scale has nothing to add


@dataclass(frozen=True)
class FormatError:
    """Error of one format or cast on a distribution of variance 1.

    Attributes:
        mse: mean squared error.
        scale: the best fixed scale of a format; None for a cast, whose scales follow the data.
    """

    mse: float
    scale: float | None = None

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise in decibels."""
        return -10 * math.log10(self.mse) if self.mse > 0 else math.inf


def is_signed(fmt: Format) -> bool:
    """Return whether ``fmt`` holds negative values."""
    return bool(fmt.layout.sign)


def scaled_error(fmt: Format, x: Tensor, scale: float) -> float:
    """Return the mean squared error of ``scale * round(x / scale)`` for float64 ``x``."""
    source = x / scale
    if fmt.precision > 21:  # formats round float64 by way of round-to-odd, which has no bits to spare for these
        source = source.float()
    return float((fmt.round(source).double() * scale - x).square().mean())


def format_error(fmt: Format, distribution: Distribution = NORMAL, count: int = QUANTILES) -> FormatError:
    """Return the least error of ``fmt`` over one fixed scale; unsigned formats are judged on the absolute values.

    The scale is searched where the largest value meets something between 1/4 and 32, and, where a scale of 1 does as
    well and yet differs (posits and HiF8 are finest around 1), between 1/4 and 4: rounds of 64 trials on a logarithmic
    grid, each around the best of the round before, so the winner is within 0.1 % of a local optimum. Where a scale of 1
    is as good to within 5 %, 0.2 dB (a format with range to spare), it is 1.
    """
    x = distribution.quantiles(count)
    if not is_signed(fmt):
        x = x[count // 2 :]
    plain = scaled_error(fmt, x, 1.0)
    best = _search(fmt, x, math.log2(0.25 / fmt.max), math.log2(32.0 / fmt.max))
    if plain < 0.8 * best[0] or 1.05 * best[0] < plain < 4 * best[0]:
        best = min(best, _search(fmt, x, -2.0, 2.0))
    return FormatError(plain, 1.0) if plain <= 1.05 * best[0] else FormatError(*best)


def _search(fmt: Format, x: Tensor, low: float, high: float) -> tuple[float, float]:
    """Return (error, scale) of the best scale whose logarithm lies between ``low`` and ``high``."""
    best = (math.inf, 1.0)
    for _ in range(_ROUNDS):
        step = (high - low) / (_COARSE - 1)
        trials = [2.0 ** (low + step * i) for i in range(_COARSE)]
        best = min(best, min((scaled_error(fmt, x, s), s) for s in trials))
        centre = math.log2(best[1])
        low, high = centre - step, centre + step
    return best


def cast_error(
    cast: Cast, distribution: Distribution = NORMAL, shape: tuple[int, int] = SAMPLE, seed: int = 0
) -> FormatError:
    """Return the error of ``cast`` on a seeded sample of ``shape``, tiled and scaled as the cast says."""
    x = distribution.sample(shape, seed)
    if not is_signed(cast.format):
        x = x.abs()
    loss = narrowed(cast, x, seed)[1]
    return FormatError(loss.noise / loss.signal)


def at_tile(cast: Cast, size: Tile) -> Cast:
    """Return ``cast`` with tiles of ``size`` and scales from the data.

    One without scales gets float32 ones with the format's own `headroom`, unless the format spans float32's range; one
    with delayed scales gets current ones.
    """
    if isinstance(cast.scale, One) and cast.format.top_exponent < _SPANS_FLOAT32:
        return replace(cast, tile=size, scale=Wide(headroom=headroom(cast.format)))
    return replace(cast, tile=size, scale=Wide() if cast.scale.delayed else cast.scale)


@lru_cache(maxsize=256)
def headroom(fmt: Format) -> int:
    """Return how many binades above a tile's largest value the top of ``fmt`` serves N(0, 1) best, in blocks of 32.

    0 for integers and minifloats, which are as fine at their top as anywhere (within 5 %, 0.2 dB); posits, HiFloat8 and
    logarithmic codes that are finest around 1 want to be there.
    """
    x = NORMAL.sample((64, 256)).view(-1, 32)
    x = x if is_signed(fmt) else x.abs()
    most = max(0, fmt.top_exponent + 2)
    at = [narrowed(Cast(fmt, ROW, Wide(headroom=h)), x)[1].noise for h in range(min(most, _SPANS_FLOAT32) + 1)]
    return 0 if at[0] <= 1.05 * min(at) else at.index(min(at))

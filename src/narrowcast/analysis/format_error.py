"""What a format or a cast costs on N(0, 1), the distribution that most weights and activations are near.

A format alone is judged with the best fixed scale: values are divided by ``scale``, rounded, multiplied back, and the
scale with the least mean squared error wins. The expectation is taken over equally probable quantiles of the normal
distribution, so it draws nothing and repeats exactly. A cast brings its own tiles and scales, so it is applied to a
seeded sample, cut into tiles as the cast says.

Mean squared error is relative to the variance, 1; so SQNR = -10 log10(MSE) decibels. 6.02 dB are one bit.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.formats import Format, Stream
from narrowcast.quantize import Cast

QUANTILES = 1 << 16
SAMPLE = (256, 1024)  # rows and columns of the sample that a cast is judged on
_COARSE = 64  # trial scales of each round of the search
_ROUNDS = 3


@dataclass(frozen=True)
class FormatError:
    """Error of one format or cast on N(0, 1).

    Attributes:
        mse: mean squared error; the variance is 1.
        scale: the best fixed scale of a format; None for a cast, whose scales follow the data.
    """

    mse: float
    scale: float | None = None

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise in decibels."""
        return -10 * math.log10(self.mse) if self.mse > 0 else math.inf


def normal_quantiles(count: int = QUANTILES) -> Tensor:
    """Return the ``count`` mid-point quantiles of N(0, 1), ascending, float64 ``[count]``."""
    quantiles: Tensor = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    return quantiles


def is_signed(fmt: Format) -> bool:
    """Return whether ``fmt`` holds negative values."""
    return bool(fmt.round(torch.tensor(-fmt.max)) < 0)


def scaled_error(fmt: Format, x: Tensor, scale: float) -> float:
    """Return the mean squared error of ``scale * round(x / scale)`` for float64 ``x``."""
    source = x / scale
    if fmt.precision > 21:  # formats round float64 by way of round-to-odd, which has no bits to spare for these
        source = source.float()
    return float((fmt.round(source).double() * scale - x).square().mean())


def format_error(fmt: Format, count: int = QUANTILES) -> FormatError:
    """Return the least error of ``fmt`` on N(0, 1) over one fixed scale; unsigned formats are judged on |N(0, 1)|.

    The scale is searched between "the largest value meets 1/4" and "it meets 16", in three rounds of 64 trials on a
    logarithmic grid, each round around the best of the round before: the winner is within 0.1 % of a local optimum.
    Where a scale of 1 is as good to within 5 %, 0.2 dB (a format with range to spare), it is 1.
    """
    x = normal_quantiles(count)
    if not is_signed(fmt):
        x = x[count // 2 :]
    plain = scaled_error(fmt, x, 1.0)
    low, high = math.log2(0.25 / fmt.max), math.log2(16.0 / fmt.max)
    best = (math.inf, 1.0)
    for _ in range(_ROUNDS):
        step = (high - low) / (_COARSE - 1)
        trials = [2.0 ** (low + step * i) for i in range(_COARSE)]
        best = min(best, min((scaled_error(fmt, x, s), s) for s in trials))
        centre = math.log2(best[1])
        low, high = centre - step, centre + step
    return FormatError(plain, 1.0) if plain <= 1.05 * best[0] else FormatError(*best)


def cast_error(cast: Cast, shape: tuple[int, int] = SAMPLE, seed: int = 0) -> FormatError:
    """Return the error of ``cast`` on a seeded N(0, 1) sample of ``shape``, tiled and scaled as the cast says."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    history = cast.scale.delayed.new() if cast.scale.delayed else None
    result = cast.apply(x, Stream(seed), history)
    return FormatError(float((result.double() - x.double()).square().mean()))

"""Integers or floats? The crest factor decides: the largest magnitude of a block over its root mean square.

An integer grid spends its step on the largest value, so its error grows with the crest factor; a float's error is
relative, so it barely does. At some crest factor the two meet. Both laws below are for blocks of N(0, sigma**2) whose
largest magnitude is ``crest`` * sigma; ``overhead`` is how far above the largest magnitude the scale puts the top of
the format, on average.
Source: "INT v.s. FP: A Comprehensive Study of Fine-Grained Low-bit Quantization Formats", arXiv 2510.25602 (sheet 33).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from narrowcast.analysis.format_error import at_tile, is_signed
from narrowcast.analysis.loss import narrowed
from narrowcast.formats import Minifloat
from narrowcast.quantize import Cast
from narrowcast.scaling import ROW, Tile

_OCTAVE = 32  # magnitudes per factor of two over which `gaussian_blocks` averages
_POINTS = 2048  # quantiles that stand for the elements of a block


# --- the observer ---


def crest_factors(x: Tensor, size: Tile) -> Tensor:
    """Return the crest factor of every tile of ``x`` that is not all zero, float32 ``[tiles]``.

    Zeros that fill up a tile count for nothing: its root mean square is over the elements that are there.
    """
    blocks, inside = size.blocks(size.padded(x.float()))
    there, _ = size.blocks(size.padded(torch.ones_like(x, dtype=torch.float32)))
    largest = blocks.abs().amax(inside)
    rms = (blocks.square().sum(inside) / there.sum(inside)).sqrt()
    return (largest / rms)[largest > 0].flatten()


@dataclass(frozen=True)
class Spread:
    """Quartiles and maximum of the crest factors of a tensor's tiles."""

    q1: float
    median: float
    q3: float
    max: float


def spread(crests: Tensor) -> Spread | None:
    """Return the quartiles of ``crests`` ``[tiles]``; None where there are none."""
    if crests.numel() == 0:
        return None
    ordered = crests.sort().values
    at = [float(ordered[round((len(ordered) - 1) * share)]) for share in (0.25, 0.5, 0.75, 1.0)]
    return Spread(*at)


# --- the laws in closed form ---


@dataclass(frozen=True)
class Fit:
    """How a scale fits the block's largest magnitude.

    Attributes:
        overhead: top of the format over the largest magnitude, on average; at least 1.
        exact: size of a block whose largest element the scale hits exactly, so that it has no error; None where a
            scale is coarser than that.
    """

    overhead: float
    exact: int | None = None


E8M0 = Fit(1.5)  # a power of two, rounded up: the overhead runs from 1 to 2


def integer_qsnr(largest: float, crest: float, fit: Fit = E8M0) -> float:
    """Return the signal to noise ratio in dB of integers up to ``largest``.

    The paper writes 4.78 + 6.02 b, which is ``largest = 2**(b - 1)``; the symmetric format has one less, which costs
    1.16 dB at 4 bits.
    """
    noise = (crest * fit.overhead / largest) ** 2 / 12
    if fit.exact is not None:
        noise *= (fit.exact - 1) / fit.exact
    return -10 * math.log10(noise)


def float_qsnr(fmt: Minifloat, crest: float, fit: Fit = E8M0) -> float:
    """Return the signal to noise ratio in dB of a minifloat: relative error above its smallest normal, a uniform grid
    below it, and nothing left below half its smallest value.
    """
    unit = fit.overhead * crest / fmt.max  # one unit of the format, in standard deviations
    normal, zero = unit * fmt.smallest_normal, unit * fmt.smallest / 2
    energy = 2 * (normal * _density(normal) + 1 - _below(normal))
    if fit.exact is not None:
        energy = max(energy - crest * crest / fit.exact, 0.0)
    noise = energy / (24 * 4**fmt.mantissa)
    noise += (unit * fmt.smallest) ** 2 / 12 * 2 * (_below(normal) - _below(zero))
    noise += 2 * _below(zero) - 1 - 2 * zero * _density(zero)
    return -10 * math.log10(noise)


def crossover(
    a: Callable[[float], float], b: Callable[[float], float], low: float = 1.05, high: float = 30.0
) -> tuple[float, float] | None:
    """Return (crest factor, dB) where the laws ``a`` and ``b`` meet between ``low`` and ``high``, or None."""
    from scipy.optimize import brentq

    def gap(crest: float) -> float:
        return a(crest) - b(crest)

    if gap(low) * gap(high) > 0:
        return None
    crest = float(brentq(gap, low, high, xtol=1e-9))
    return crest, a(crest)


def _density(t: float) -> float:
    return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)


def _below(t: float) -> float:
    return 0.5 * math.erfc(-t / math.sqrt(2))


# --- the law of any cast ---


def gaussian_blocks(cast: Cast, ends: list[float], block: int = 32) -> list[tuple[float, float]]:
    """Return (crest factor, dB) of Gaussian blocks that end at each of ``ends`` standard deviations.

    What the closed forms approximate, for every format and scale rule: the block's largest element is ``end``, the
    others are the quantiles of N(0, 1) within it; the cast is run on such blocks at 32 magnitudes per factor of two,
    and the errors are averaged. ``block`` says how much the largest element counts; no block's crest factor exceeds
    its square root. A bare format gets float32 scales, an unsigned one magnitudes; a transform is taken to be done.
    """
    law = replace(at_tile(cast, ROW), transform=None)
    magnitudes = 2.0 ** (torch.arange(_OCTAVE, dtype=torch.float64) / _OCTAVE)[:, None]
    share = torch.full((_POINTS + 1,), (block - 1) / block / _POINTS, dtype=torch.float64)
    share[0] = 1 / block
    found = []
    for end in ends:
        within = torch.special.ndtri(0.5 + (_below(end) - 0.5) * (2 * (torch.arange(_POINTS) + 0.5) / _POINTS - 1))
        x = torch.cat([torch.tensor([end]), within.float()]).double()
        x = x if is_signed(cast.format) else x.abs()
        rows = (x * magnitudes).float()
        error = ((narrowed(law, rows)[0].double() - rows.double()) / magnitudes).square().mean(0)
        energy = float((x.square() * share).sum())
        found.append((end / math.sqrt(energy), -10 * math.log10(max(float((error * share).sum()) / energy, 1e-30))))
    return found

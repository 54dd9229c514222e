"""Where the values of a format lie: how far they reach, and how wide the gaps between them are."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.formats import Format

LISTED = 16  # widest format, in bits, whose every value is looked at
_PER_OCTAVE = 4  # magnitudes per factor of two at which wider formats are probed
_POINTS = 600  # of a curve, at most


@dataclass(frozen=True)
class Reach:
    """How far a format reaches.

    Attributes:
        magnitudes: how many positive values; None beyond 16 bits.
        binades: log2(largest / smallest positive value).
        decibels: the same as 20 log10.
        finest: least gap between neighbours over their magnitude: the best relative precision anywhere.
    """

    magnitudes: int | None
    binades: float
    decibels: float
    finest: float


def positive(fmt: Format) -> Tensor | None:
    """Return the positive values of ``fmt``, ascending, float64; None beyond 16 bits.

    Of a format with none but zero and negative values (int1_full) the magnitudes of those.
    """
    if fmt.bits > LISTED:
        return None
    values = fmt.values()
    return values[values > 0] if values[-1] > 0 else -values[values < 0].flip(0)


def reach(fmt: Format) -> Reach:
    """Return how far ``fmt`` reaches."""
    values = positive(fmt)
    ratio = fmt.max / fmt.smallest if values is None else float(values[-1] / values[0])
    below, above = neighbours(fmt)
    finest = float(((above - below) / above).min()) if len(above) else 1.0
    return Reach(None if values is None else len(values), math.log2(ratio), 20 * math.log10(ratio), finest)


def neighbours(fmt: Format) -> tuple[Tensor, Tensor]:
    """Return pairs of neighbouring positive values, ascending, float64.

    All of them up to 16 bits; beyond, those around four magnitudes per factor of two, found by rounding down and up.
    """
    values = positive(fmt)
    if values is not None:
        return values[:-1], values[1:]
    low, high = math.log2(fmt.smallest), math.log2(fmt.max)
    exponents = torch.arange(math.ceil(low * _PER_OCTAVE), math.floor(high * _PER_OCTAVE), dtype=torch.float64)
    probes = (2.0 ** ((exponents + 0.5) / _PER_OCTAVE)).float()
    probes = probes[probes < fmt.max]
    above = torch.nextafter(probes, torch.tensor(math.inf))  # float32 holds every value: none lies between
    return fmt.neighbours(probes)[0].double(), fmt.neighbours(above)[1].double()


def spacing(fmt: Format) -> tuple[list[float], list[float]]:
    """Return (magnitudes, gaps) of a staircase: the gap from each magnitude up to its neighbour.

    Only where the gap changes, and evenly thinned out to 600 points where it changes everywhere.
    """
    below, above = neighbours(fmt)
    gaps = above - below
    if not len(gaps):
        return [], []
    changes = torch.ones(len(gaps), dtype=torch.bool)
    changes[1:-1] = (gaps[1:-1] != gaps[:-2]) | (gaps[1:-1] != gaps[2:])
    kept = torch.nonzero(changes).flatten()
    if len(kept) > _POINTS:
        kept = kept[torch.linspace(0, len(kept) - 1, _POINTS).round().long()]
    return below[kept].tolist(), gaps[kept].tolist()

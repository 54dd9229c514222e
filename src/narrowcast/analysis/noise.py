"""When is a gap a gap? The baseline's own spread over seeds decides."""

import math
import statistics
from dataclasses import dataclass

from narrowcast.errors import InputError

_CONFIDENCE = 0.975  # two-sided 95 %


@dataclass(frozen=True)
class NoiseFloor:
    """The baseline's final losses over seeds, and how far one more run of it may fall from their mean.

    Attributes:
        losses: final validation losses, one a seed.
        half_width: Student's prediction interval, t * s * sqrt(1 + 1/n): 95 % of further baseline runs fall within.
    """

    losses: tuple[float, ...]
    half_width: float

    @property
    def mean(self) -> float:
        """Mean of the losses."""
        return statistics.fmean(self.losses)

    @property
    def std(self) -> float:
        """Sample standard deviation of the losses."""
        return statistics.stdev(self.losses)

    @property
    def explanation(self) -> str:
        """One sentence for a report."""
        return (
            f"The baseline was trained with {len(self.losses)} seeds (other weights, other batches). Its final "
            f"validation losses have a standard deviation of {self.std:.4f}; 95 % of further baseline runs would fall "
            f"within {self.half_width:.4f} of their mean (Student's prediction interval). A recipe shares the "
            "baseline's weights and batches, so a gap beyond that width is more than a change of seed can do."
        )

    def verdict(self, gap: float) -> str:
        """Return ``better``, ``not distinguishable`` or ``worse`` for a loss gap (recipe minus baseline)."""
        if not math.isfinite(gap) or gap > self.half_width:
            return "worse"
        return "better" if gap < -self.half_width else "not distinguishable"


def noise_floor(losses: list[float]) -> NoiseFloor:
    """Return the noise floor from at least three baseline losses."""
    if len(losses) < 3:
        raise InputError(f"the noise floor needs at least 3 baseline seeds, found {len(losses)}; raise --seeds")
    from scipy.stats import t

    n = len(losses)
    width = float(t.ppf(_CONFIDENCE, n - 1)) * statistics.stdev(losses) * math.sqrt(1 + 1 / n)
    return NoiseFloor(tuple(losses), width)

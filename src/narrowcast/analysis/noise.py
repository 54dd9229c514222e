"""When is a gap a gap? The baseline's own spread over seeds decides.

The baseline is trained under n seeds. One more run of it would end, with 95 % probability and for normal losses, in

    mean +- t(0.975, n - 1) * s * sqrt(1 + 1/n)          s: sample standard deviation

(Student's prediction interval; Hahn & Meeker 1991, Statistical Intervals, section 4.7). A gap is a run's loss minus
that mean; within half the interval it could be one more seed of the baseline. That a recipe shares weights and batches
with one of the baseline's runs does not narrow it: training is chaotic, and float32 ended 0.048 from bfloat16 under one
seed where the seeds' standard deviation was 0.021 (800 steps of the default model). Each recipe is judged alone: of
twenty recipes without any effect one would be called better or worse.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from narrowcast.errors import InputError

_CONFIDENCE = 0.975  # one tail of two: 95 % between them


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
            f"The baseline was trained under {len(self.losses)} seeds (other weights, other batches); its final "
            f"validation losses have a standard deviation of {self.std:.4f} around {self.mean:.4f}, and 95 % of "
            f"further baseline runs would end within {self.half_width:.4f} of that mean (Student's prediction "
            "interval). A gap is a run's loss minus that mean; a smaller one is not distinguishable from another seed"
        )

    def verdict(self, gap: float) -> str:
        """Return ``better``, ``not distinguishable`` or ``worse`` for a loss gap (recipe minus baseline)."""
        if not math.isfinite(gap) or gap > self.half_width:
            return "worse"
        return "better" if gap < -self.half_width else "not distinguishable"


def student_quantile(freedom: int) -> float:
    """Return the two-sided 95 % quantile of Student's t, e.g. 4.303 for 2 degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(_CONFIDENCE, freedom))


def noise_floor(losses: Sequence[float]) -> NoiseFloor:
    """Return the noise floor from the losses (nats per token) of at least three baseline runs."""
    n = len(losses)
    if n < 3:
        raise InputError(f"the noise floor needs at least 3 baseline seeds, found {n}; raise --seeds")
    if not all(math.isfinite(loss) for loss in losses):
        raise InputError(f"the noise floor needs finite losses, found {list(losses)}; lower --lr")
    return NoiseFloor(tuple(losses), student_quantile(n - 1) * statistics.stdev(losses) * math.sqrt(1 + 1 / n))

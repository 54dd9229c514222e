"""The noise floor: Student's interval against the printed table, and the three verdicts."""

import math
import statistics

import pytest

from narrowcast.analysis.noise import NoiseFloor, noise_floor, student_quantile
from narrowcast.errors import InputError

# Two-sided 95 % quantiles as tables print them (e.g. NIST/SEMATECH e-Handbook, 1.3.6.7.2).
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042}


@pytest.mark.parametrize(("freedom", "quantile"), TABLE.items())
def test_quantiles_agree_with_the_table(freedom: int, quantile: float) -> None:
    assert student_quantile(freedom) == pytest.approx(quantile, abs=5e-4)


def test_half_width_is_the_prediction_interval_for_one_more_run() -> None:
    floor = noise_floor([2.0, 2.1, 2.2])
    assert floor.mean == pytest.approx(2.1)
    assert floor.std == pytest.approx(0.1)
    assert floor.half_width == pytest.approx(4.3027 * 0.1 * math.sqrt(4 / 3), rel=1e-4)


def test_one_more_run_falls_inside_as_often_as_promised() -> None:
    """5 + 1 normal draws, 4,000 times: 95 % inside, to within 4 sigmas of a binomial count."""
    import random

    rng = random.Random(0)
    width = student_quantile(4) * math.sqrt(1 + 1 / 5)
    trials, inside = 4000, 0
    for _ in range(trials):
        *known, new = (rng.gauss(0, 1) for _ in range(6))
        inside += abs(new - statistics.fmean(known)) <= width * statistics.stdev(known)
    assert abs(inside / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize(
    ("gap", "verdict"),
    [
        (0.0, "not distinguishable"),
        (0.05, "not distinguishable"),
        (-0.05, "not distinguishable"),
        (0.051, "worse"),
        (-0.051, "better"),
        (math.inf, "worse"),
        (math.nan, "worse"),
    ],
)
def test_verdict(gap: float, verdict: str) -> None:
    assert NoiseFloor((2.0, 2.0, 2.0), 0.05).verdict(gap) == verdict


def test_explanation_names_the_numbers() -> None:
    text = noise_floor([2.0, 2.1, 2.2]).explanation
    for part in ("3 seeds", "0.1000", "2.1000", "0.4968", "95 %"):
        assert part in text


@pytest.mark.parametrize("losses", [[], [2.0], [2.0, 2.1]])
def test_too_few_seeds_are_refused(losses: list[float]) -> None:
    with pytest.raises(InputError, match=f"at least 3 baseline seeds, found {len(losses)}"):
        noise_floor(losses)


def test_a_loss_that_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="finite"):
        noise_floor([2.0, math.nan, 2.1])

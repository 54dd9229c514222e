"""Learning-rate schedules."""

import pytest

from narrowcast.errors import InputError
from narrowcast.optim import learning_rate


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_warms_up_peaks_and_ends_at_a_tenth(schedule):
    rates = [learning_rate(schedule, step, 100, 10, 1.0) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1, abs=0.05)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_wsd_stays_at_the_peak_until_the_last_fifth():
    assert learning_rate("wsd", 79, 100, 10, 1.0) == pytest.approx(1.0, abs=0.06)
    assert learning_rate("wsd", 90, 100, 10, 1.0) < 0.6


def test_unknown_schedule_names_the_known_ones():
    with pytest.raises(InputError, match="unknown schedule 'cosin'; nearest: cosine"):
        learning_rate("cosin", 0, 10, 0, 1.0)

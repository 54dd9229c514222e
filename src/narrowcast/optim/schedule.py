"""Learning-rate schedules, as pure functions of the step."""

import math

from narrowcast.errors import InputError, nearest

SCHEDULES = ("cosine", "wsd")
_FLOOR = 0.1  # the final learning rate, as a share of the peak
_DECAY_SHARE = 0.2  # the decay phase of warmup-stable-decay


def learning_rate(schedule: str, step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the rate of ``step`` (0-based): linear warm-up, then cosine, or stable and a linear decay ("wsd")."""
    if schedule not in SCHEDULES:
        raise InputError(f"unknown schedule {schedule!r}{nearest(schedule, SCHEDULES)}")
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "cosine":
        done = (step - warmup) / max(1, steps - warmup)
        return peak * (_FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * done)))
    decay = max(1, int(steps * _DECAY_SHARE))
    left = min(1.0, (steps - step) / decay)
    return peak * (_FLOOR + (1 - _FLOOR) * left)

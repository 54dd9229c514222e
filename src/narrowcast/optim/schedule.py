"""Learning-rate schedules, as pure functions of the step.

Both warm up linearly and end at a tenth of the peak. *cosine* falls all the way (Loshchilov and Hutter 2017);
*wsd*, warmup-stable-decay, stays at the peak and falls linearly over the last fifth (Hu et al. 2024, MiniCPM).
"""

import math

from narrowcast.errors import InputError, nearest

SCHEDULES = ("cosine", "wsd")
_FLOOR = 0.1  # the final learning rate, as a share of the peak
_DECAY_SHARE = 0.2  # the decay phase of wsd


def learning_rate(schedule: str, step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the rate of the 0-based ``step`` of ``steps``, the first ``warmup`` of which climb to ``peak``."""
    if schedule not in SCHEDULES:
        raise InputError(f"unknown schedule {schedule!r}{nearest(schedule, SCHEDULES)}")
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule == "cosine":
        done = (step - warmup) / max(1, steps - 1 - warmup)
        return peak * (_FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
    decay = max(1, round(steps * _DECAY_SHARE))
    left = min(1.0, (steps - 1 - step) / decay)
    return peak * (_FLOOR + (1 - _FLOOR) * left)

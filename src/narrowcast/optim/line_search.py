"""Line search: a step length along a direction that satisfies Wolfe's conditions, from values and slopes.

Bracket, then shrink the bracket by safeguarded interpolation (Nocedal and Wright, "Numerical Optimization", 2nd ed.,
algorithms 3.5 and 3.6). What is compared is a value, a `Rule`, because it limits a search in low precision: the
*values* at two points near a minimum differ by less than they are rounded by, long before their slopes do (Hager and
Zhang, "A new conjugate gradient method with guaranteed descent", 2005, section 4).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

_DECREASE = 1e-4  # of the first-order prediction: Nocedal and Wright, 3.1
_GROWTH = 4.0  # of the step, while bracketing
_NOISE = 1e-3  # by which a value may rise where slopes decide
_SAFEGUARD = 0.1  # least distance of a trial from the ends, as a share of the bracket


@dataclass(frozen=True)
class Point:
    """The objective at one step length: its value, and its slope along the direction."""

    step: float
    value: float
    slope: float

    @property
    def finite(self) -> bool:
        """Whether both are numbers."""
        return math.isfinite(self.value) and math.isfinite(self.slope)


@dataclass(frozen=True)
class Rule:
    """What a line search compares.

    Attributes:
        decrease: whether a point (second) lies low enough below the start (first).
        lower: whether a point (second) is the better end of the bracket than the present one (first).
        minimizer: where the minimum between two points may be; None where they do not say.
    """

    decrease: Callable[[Point, Point], bool]
    lower: Callable[[Point, Point], bool]
    minimizer: Callable[[Point, Point], float | None]


def _armijo(start: Point, point: Point) -> bool:
    return point.value < start.value and point.value <= start.value + _DECREASE * point.step * start.slope


def _armijo_in_slopes(start: Point, point: Point) -> bool:
    """Armijo's condition as it reads for a parabola, in slopes alone; values only keep out another valley."""
    allowed = start.value + _NOISE * abs(start.value)
    return point.slope <= (2 * _DECREASE - 1) * start.slope and point.value <= allowed


def _cubic(a: Point, b: Point) -> float | None:
    """Minimizer of the cubic that interpolates values and slopes (Nocedal and Wright, eq. 3.59)."""
    d = a.slope + b.slope - 3 * (a.value - b.value) / (a.step - b.step)
    square = d * d - a.slope * b.slope
    if square < 0:
        return None
    root = math.copysign(math.sqrt(square), b.step - a.step)
    below = b.slope - a.slope + 2 * root
    return b.step - (b.step - a.step) * (b.slope + root - d) / below if below else None


def _secant(a: Point, b: Point) -> float | None:
    """Zero of the line through both slopes."""
    return a.step - a.slope * (b.step - a.step) / (b.slope - a.slope) if a.slope * b.slope < 0 else None


VALUES = Rule(_armijo, lambda low, point: point.value <= low.value, _cubic)
SLOPES = Rule(_armijo_in_slopes, lambda low, point: True, _secant)


def search(
    at: Callable[[float], Point],
    start: Point,
    guess: float,
    rule: Rule = VALUES,
    curvature: float = 0.1,
    limit: int = 20,
) -> Point | None:
    """Return a point that decreases and whose slope is at most ``curvature`` of that at the start, in magnitude.

    Args:
        at: evaluates the objective at a step length.
        start: the point at step 0; its slope is negative.
        guess: first step to try, positive.
        rule: what is compared: `VALUES` or `SLOPES`.
        curvature: Wolfe's second constant; conjugate directions want 0.1.
        limit: most evaluations. Where they run out, the lowest point that decreases is returned, if any.

    Returns None where no point that decreases was found: in low precision, the end of training.
    """
    low, high = start, None  # low: the best so far, its slope points into the bracket
    best, step = None, guess
    for _ in range(limit):
        point = at(step)
        if not (point.finite and rule.decrease(start, point) and rule.lower(low, point)):
            high = point
        else:
            best = point
            if abs(point.slope) <= -curvature * start.slope:
                return point
            if point.slope * ((high.step if high else math.inf) - low.step) >= 0:
                high = low
            low = point
        step = _GROWTH * step if high is None else _inside(low, high, rule)
        if step in (low.step, high.step if high else None) or not math.isfinite(step):
            break
    return best


def _inside(low: Point, high: Point, rule: Rule) -> float:
    """Return where the rule puts the minimum, kept off the ends; the middle where it does not say."""
    width = high.step - low.step
    trial = rule.minimizer(low, high) if high.finite else None
    if trial is None:
        return low.step + width / 2 if high.finite else low.step + _SAFEGUARD * width
    share = (trial - low.step) / width
    return low.step + min(max(share, _SAFEGUARD), 1 - _SAFEGUARD) * width

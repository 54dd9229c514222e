"""What B lost against A, figure by figure, each with an interval and a noise floor.

Two things make a small change mean nothing: another sample of text would have given another figure (the half width of
the paired 95 % interval), and so would rounding A's weights to bfloat16. The **noise floor** is the larger of the two;
for a divergence, which is never negative, it is what bfloat16 alone makes of it.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from narrowcast.metrics import Interval


@dataclass(frozen=True)
class Finding:
    """One figure of B beside A's.

    Attributes:
        name: with its unit.
        a, b: the figures; ``a`` is None for figures of the pair, such as a divergence.
        change: ``b - a`` (or ``b``) with its paired interval.
        rounded: the same change for A in bfloat16, or None where that was not measured.
        larger_is_better: which direction is a loss.
    """

    name: str
    a: float | None
    b: float
    change: Interval
    rounded: float | None = None
    larger_is_better: bool = False

    @property
    def floor(self) -> float:
        """The noise floor of ``change``."""
        if self.a is None:
            return self.rounded or 0.0
        return max(self.change.half_width, abs(self.rounded or 0.0))

    @property
    def verdict(self) -> str:
        """``within the noise``, ``worse`` or ``better``; figures of the pair are never better."""
        if self.a is None:
            within = self.change.value >= self.floor if self.larger_is_better else self.change.value <= self.floor
            return "within the noise" if within else "worse"
        if 0.0 in self.change or abs(self.change.value) <= self.floor:
            return "within the noise"
        return "better" if (self.change.value > 0) == self.larger_is_better else "worse"

    def to_json(self) -> dict[str, Any]:
        """Return plain values; what is not finite is None."""
        found = {
            "name": self.name,
            "a": self.a,
            "b": self.b,
            "change": self.change.value,
            "low": self.change.low,
            "high": self.change.high,
            "bfloat16": self.rounded,
            "floor": self.floor,
            "larger_is_better": self.larger_is_better,
            "verdict": self.verdict,
        }
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}


@dataclass(frozen=True)
class Comparison:
    """B against A.

    Attributes:
        kind: ``language``, ``classifier`` or ``sentences``.
        data: what it was measured on.
        units: how many windows, pictures or pairs were drawn from.
        findings: the figures.
        layers: what each layer alone costs, worst first (`LayerDamage.to_json`); empty where nobody asked.
        notes: what a reader must know.
    """

    kind: str
    data: str
    units: int
    findings: list[Finding]
    layers: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def finding(self, name: str) -> Finding:
        """Return the finding whose name begins with ``name``; KeyError where there is none."""
        for one in self.findings:
            if one.name.startswith(name):
                return one
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "findings": [one.to_json() for one in self.findings]}

"""What came of a conformance run: agreement by class, the first differing input as bits, and why."""

from dataclasses import asdict, dataclass
from typing import Any

from narrowcast.testing.search import Reason
from narrowcast.testing.trials import Difference


@dataclass(frozen=True)
class Tally:
    """Answers of one class: ``count`` of them, of which ``agree`` are right; the first wrong one, or None."""

    name: str
    count: int
    agree: int
    first: Difference | None


@dataclass(frozen=True)
class Finding:
    """What came of one function, an encoder or a decoder.

    Attributes:
        function: its name.
        kind: what it returned: ``codes``, ``values``, ``codes+scales``, ``dequantized``, or ``decoded``.
        tallies: agreement by class of input.
        first: the first answer that differs, or None.
        reasons: the habits under which more answers agree, the one that explains most first.
        unexplained: answers that differ even under ``reasons``, and the first of them.
    """

    function: str
    kind: str
    tallies: tuple[Tally, ...]
    first: Difference | None
    reasons: tuple[Reason, ...]
    unexplained: int
    first_unexplained: Difference | None

    @property
    def count(self) -> int:
        """Answers compared."""
        return sum(tally.count for tally in self.tallies)

    @property
    def differ(self) -> int:
        """Answers that are not what was asked for."""
        return self.count - sum(tally.agree for tally in self.tallies)

    @property
    def rule(self) -> str:
        """The habits under which more answers agree, in one line; all of them where ``unexplained`` is 0."""
        return "; ".join(reason.name for reason in self.reasons)


@dataclass(frozen=True)
class Report:
    """A conformance run: what was asked for, and a finding for each function.

    Attributes:
        asked: the format and rounding, or the cast, in its spelling.
        findings: of the encoder, then of the decoder.
    """

    asked: str
    findings: tuple[Finding, ...]

    @property
    def conforms(self) -> bool:
        """Whether every answer of every function is what was asked for."""
        return all(finding.differ == 0 for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return {
            "asked": self.asked,
            "conforms": self.conforms,
            "findings": [
                {**asdict(finding), "count": finding.count, "differ": finding.differ} for finding in self.findings
            ],
        }

    def __str__(self) -> str:
        return "\n\n".join(_text(self.asked, finding) for finding in self.findings)


def _text(asked: str, finding: Finding) -> str:
    width = max(len(tally.name) for tally in finding.tallies)
    rows = [
        f"  {tally.name:<{width}}  {tally.count:>9,}  {tally.agree:>9,}"
        + (f"  {_difference(tally.first)}" if tally.first else "")
        for tally in finding.tallies
    ]
    head = [
        f"{finding.function} as {asked} ({finding.kind})",
        f"  {'class':<{width}}  {'answers':>9}  {'agree':>9}  first difference",
    ]
    return "\n".join([*head, *rows, *_verdict(finding)])


def _difference(one: Difference) -> str:
    return f"{one.input} ({one.value:.9g}): expected {one.expected}, found {one.found}"


def _verdict(finding: Finding) -> list[str]:
    if not finding.differ:
        return [f"conforms: all {finding.count:,} answers agree"]
    assert finding.first is not None
    place = f", {finding.first.place}" if finding.first.place else ""
    lines = [
        f"does not conform: {finding.differ:,} of {finding.count:,} answers differ",
        f"first: {_difference(finding.first)}, {finding.first.input_class}{place}",
    ]
    lines += [f"why: {reason.name} ({reason.slot}; {reason.count:,} answers)" for reason in finding.reasons]
    if not finding.unexplained:
        return [*lines, f"it would agree in full under: {finding.rule}"]
    assert finding.first_unexplained is not None
    what = f"no rule tried explains {finding.unexplained:,} answers, the first {_difference(finding.first_unexplained)}"
    return [*lines, f"{what}, {finding.first_unexplained.input_class}"]

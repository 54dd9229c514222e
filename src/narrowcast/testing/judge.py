"""From answers to a finding: count, show the first difference, and look for the habits that explain the rest."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from narrowcast.testing.report import Finding, Tally
from narrowcast.testing.search import Reason, agreement, closest, reasons
from narrowcast.testing.trials import Difference, Trial

Way = TypeVar("Way")
_ORDINARY = {"value of a code", "tie", "beside a threshold", "subnormal", "other", "code"}


@dataclass(frozen=True)
class Reading:
    """The same answers as they came, or as if they had been stored in another order.

    Attributes:
        name: of the order.
        make: returns the trials.
        telling: one small trial that shows best whether the order is right.
    """

    name: str
    make: Callable[[], Sequence[Trial[Any]]]
    telling: Trial[Any]

    @cached_property
    def trials(self) -> Sequence[Trial[Any]]:
        """The trials, made when first wanted."""
        return self.make()


def judge(
    function: str,
    kind: str,
    start: Way,
    readings: Sequence[Reading],
    neighbours: Callable[[Way], Iterable[tuple[str, Way]]],
) -> Finding:
    """Return what came of ``function``. The first reading is of the answers as they came."""
    plain = readings[0].trials
    agreed = [trial.agree(start) for trial in plain]
    tallies = _tallies(plain, agreed, start)
    first = _most_telling(tallies)
    if first is None:
        return Finding(function, kind, tallies, None, (), 0, None)
    differ = sum(tally.count - tally.agree for tally in tallies)
    reading, way = _explained(start, readings, neighbours)
    explained = [trial.agree(way) for trial in reading.trials]
    unexplained = sum(int((~agree).sum()) for agree in explained)
    if unexplained >= differ:  # the sample misled: nothing is gained
        return Finding(function, kind, tallies, first, (), differ, first)
    found = reasons(start, way, reading.trials)
    if reading is not readings[0]:
        gained = agreement(reading.trials, way) - agreement(plain, way)
        found.insert(0, Reason("layout", reading.name, gained))
    remaining = _first(reading.trials, explained, way)
    return Finding(function, kind, tallies, first, tuple(found), unexplained, remaining)


def _explained(
    start: Way,
    readings: Sequence[Reading],
    neighbours: Callable[[Way], Iterable[tuple[str, Way]]],
) -> tuple[Reading, Way]:
    """Return the reading and the way that most answers agree with; another order only where it explains more."""
    plain = readings[0]
    other = max(readings, key=lambda reading: agreement([reading.telling], start))
    way = closest(start, other.trials, neighbours)
    score = agreement(other.trials, way)
    if other is plain or score == sum(len(trial.classes) for trial in other.trials):
        return other, way
    plain_way = closest(start, plain.trials, neighbours)
    return (other, way) if score > agreement(plain.trials, plain_way) else (plain, plain_way)


def _tallies(trials: Sequence[Trial[Any]], agreed: Sequence[Tensor], way: Any) -> tuple[Tally, ...]:
    found = []
    for index, name in enumerate(trials[0].names):
        here = [trial.classes == index for trial in trials]
        count = sum(int(mask.sum()) for mask in here)
        good = sum(int((mask & agree).sum()) for mask, agree in zip(here, agreed, strict=True))
        wrong = [agree | ~mask for mask, agree in zip(here, agreed, strict=True)]
        if count:
            found.append(Tally(name, count, good, _first(trials, wrong, way)))
    return tuple(found)


def _most_telling(tallies: Sequence[Tally]) -> Difference | None:
    """Return the first difference of the most ordinary class that has one."""
    wrong = sorted((tally for tally in tallies if tally.first), key=lambda tally: tally.name not in _ORDINARY)
    return wrong[0].first if wrong else None


def _first(trials: Sequence[Trial[Any]], agreed: Sequence[Tensor], way: Any) -> Difference | None:
    """Return the first answer that does not agree, beside what ``way`` expects."""
    for trial, agree in zip(trials, agreed, strict=True):
        if not bool(agree.all()):
            return trial.difference(int(torch.argmin(agree.int())), way)
    return None

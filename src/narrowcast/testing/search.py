"""Find the way in which someone else's answers would all be right.

Steepest ascent from our way over single changes of habit, on a sample of the answers that differ and of those that
agree. Every habit that is not needed goes back; what remains is checked on all answers, and sought again with those
that it fails on.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from narrowcast.testing.trials import Trial

Way = TypeVar("Way")
_ROUNDS = 3


@dataclass(frozen=True)
class Reason:
    """One habit of the foreign function's that differs from what was asked.

    Attributes:
        slot: what the habit is about: ``rounding``, ``overflow``, ``rule`` (of the scale), ...
        name: the habit, e.g. ``"ties away from zero"``.
        count: answers that are explained by it and not without it.
    """

    slot: str
    name: str
    count: int


def agreement(trials: Sequence[Trial[Any]], way: Any) -> int:
    """Return how many answers are those of ``way``."""
    return sum(int(trial.agree(way).sum()) for trial in trials)


def closest(start: Way, trials: Sequence[Trial[Way]], neighbours: Callable[[Way], Iterable[tuple[str, Way]]]) -> Way:
    """Return the way near ``start`` that most answers agree with; ``start`` itself where nothing is better.

    What a sample led to is checked on all answers; those that it fails on join the sample, and the search starts again.
    """
    best, most = start, agreement(trials, start)
    samples: list[Trial[Way]] = []
    way = start
    for _ in range(_ROUNDS):
        samples += [trial.sample(trial.agree(way)) for trial in trials]
        way = _best_of(start, samples, neighbours)
        agree = agreement(trials, way)
        if agree > most:
            best, most = way, agree
        if most == sum(len(trial.classes) for trial in trials):
            break
    return best


def _best_of(start: Way, samples: Sequence[Trial[Way]], neighbours: Callable[[Way], Iterable[tuple[str, Way]]]) -> Way:
    """Return the best way by ``samples``.

    Where the ascent ends short of the top, each habit that it took on is given up in turn and another way up is sought:
    one habit (double rounding, say) can hide two others that together explain more.
    """
    size = sum(len(sample.classes) for sample in samples)
    best, score = _climbed(start, samples, neighbours, size)
    for slot, choice in changed(start, best) if score < size else ():

        def others(way: Way, slot: str = slot, choice: Any = choice) -> Iterator[tuple[str, Way]]:
            return ((s, w) for s, w in neighbours(way) if (slot, choice) not in changed(start, w))

        other, top = _climbed(put_back(start, best, slot), samples, others, size)
        if top > score:
            best, score = other, top
    return _pruned(start, best, samples, score)


def _climbed(
    start: Way,
    samples: Sequence[Trial[Way]],
    neighbours: Callable[[Way], Iterable[tuple[str, Way]]],
    size: int,
) -> tuple[Way, int]:
    """Return where steepest ascent from ``start`` ends, and how many answers agree there."""
    best, score = start, agreement(samples, start)
    while score < size:
        scored = [(agreement(samples, way), way) for _, way in neighbours(best)]
        top, way = max(scored, key=lambda pair: pair[0])
        if top <= score:
            break
        best, score = way, top
    return best, score


def _pruned(start: Way, best: Way, samples: Sequence[Trial[Way]], score: int) -> Way:
    """Return ``best`` without the habits that change nothing."""
    for slot, _ in changed(start, best):
        without = put_back(start, best, slot)
        if agreement(samples, without) >= score:
            best = without
    return best


def changed(start: Any, way: Any, within: str = "") -> list[tuple[str, Any]]:
    """Return (slot, choice) for every slot in which ``way`` differs; slots of a nested way have dotted names."""
    found: list[tuple[str, Any]] = []
    for field in fields(start):
        ours, theirs = getattr(start, field.name), getattr(way, field.name)
        if ours == theirs:
            continue
        if hasattr(ours, "value"):
            found.append((within + field.name, theirs))
        else:
            found += changed(ours, theirs, f"{within}{field.name}.")
    return found


def put_back(start: Any, way: Any, slot: str) -> Any:
    """Return ``way`` with ``start``'s choice in ``slot``."""
    head, _, rest = slot.partition(".")
    ours = getattr(start, head)
    return replace(way, **{head: put_back(ours, getattr(way, head), rest) if rest else ours})


def reasons(start: Any, way: Any, trials: Sequence[Trial[Any]]) -> list[Reason]:
    """Return the habits in which ``way`` differs from ``start``, each with what it explains, the largest first."""
    whole = agreement(trials, way)
    found = [
        Reason(slot.rpartition(".")[2], choice.name, whole - agreement(trials, put_back(start, way, slot)))
        for slot, choice in changed(start, way)
    ]
    return sorted(found, key=lambda reason: -reason.count)

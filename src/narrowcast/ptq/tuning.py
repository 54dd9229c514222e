"""Tuning by accuracy: try ways of quantizing in turn until one loses little enough, then give single layers back.

The order is the paper's: a static scheme first, then whatever is more exact or dearer; if none passes, the layers of
the last (or the best) one are made wide again, the most harmful first, until the result passes.
Source: Shen et al. 2024, "Efficient Post-training Quantization with FP8 Formats", section 3.4 (at most 1 % lost).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from narrowcast.errors import InputError

#: judges a model: larger is better
Score = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Tuned:
    """What tuning ended with.

    Attributes:
        model: the quantized model.
        name: of the way that it was quantized.
        score: reached.
        passed: whether that is enough.
        widened: layers that were given back, in order.
        tried: (name, score) of everything that was judged.
    """

    model: nn.Module
    name: str
    score: float
    passed: bool
    widened: tuple[str, ...]
    tried: tuple[tuple[str, float], ...]


def tune(
    ways: Sequence[tuple[str, Callable[[tuple[str, ...]], nn.Module]]],
    wide: nn.Module,
    score: Score,
    rank: Callable[[nn.Module], list[str]],
    allowed: float = 0.01,
    most: int = 4,
) -> Tuned:
    """Return the first way that loses at most ``allowed`` of the wide model's score, or the best with layers widened.

    Args:
        ways: (name, function of the layers that stay wide -> quantized copy), in the order of trial.
        wide: the model before.
        score: judges a model, larger is better.
        rank: names of a quantized model's layers, the most harmful first.
        allowed: share of the wide model's score that may be lost.
        most: layers that may be given back.
    """
    if not ways:
        raise InputError("tuning: no way of quantizing was given")
    needed = score(wide) * (1 - allowed)
    tried: list[tuple[str, float]] = []
    best: tuple[float, int, nn.Module] | None = None
    for number, (name, make) in enumerate(ways):
        model = make(())
        tried.append((name, score(model)))
        if tried[-1][1] >= needed:
            return Tuned(model, name, tried[-1][1], True, (), tuple(tried))
        if best is None or tried[-1][1] > best[0]:
            best = (tried[-1][1], number, model)
    assert best is not None
    reached, number, model = best
    name, make = ways[number]
    order = rank(model)
    for count in range(1, min(most, len(order)) + 1):
        widened = tuple(order[:count])
        model = make(widened)
        reached = score(model)
        tried.append((f"{name}, wide: {', '.join(widened)}", reached))
        if reached >= needed:
            return Tuned(model, name, reached, True, widened, tuple(tried))
    return Tuned(model, name, reached, False, tuple(order[:most]), tuple(tried))

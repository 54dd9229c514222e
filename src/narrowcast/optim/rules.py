"""Update rules as plain definitions: what a step makes of weight, gradient and moments, all float32.

Every product and sum is its own rounded float32 operation, in the order written here: no fused multiply-add, no
division by a number (torch multiplies by a reciprocal then). So a kernel in the same order gives the same bits.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from narrowcast.errors import InputError

Numbers = tuple[float, ...]
Update = Callable[[Tensor, Tensor, tuple[Tensor, ...], Numbers], tuple[Tensor, tuple[Tensor, ...]]]


@dataclass(frozen=True)
class Rule:
    """One update rule.

    Attributes:
        name: for messages.
        moments: names of what it keeps beside the weight.
        numbers: the float32 constants of a step, from a parameter group and the step's number, 1 for the first.
        update: ``(weight, gradient, moments, numbers) -> (weight, moments)``; may overwrite what it is given.
    """

    name: str
    moments: tuple[str, ...]
    numbers: Callable[[Mapping[str, Any], int], Numbers]
    update: Update


def _adamw_numbers(group: Mapping[str, Any], step: int) -> Numbers:
    """Return (b1, 1 - b1, b2, 1 - b2, 1 / sqrt(1 - b2**t), eps, lr / (1 - b1**t), 1 - lr * decay)."""
    lr, (b1, b2) = float(group["lr"]), group["betas"]
    root = 1 / math.sqrt(1 - b2**step)
    return b1, 1 - b1, b2, 1 - b2, root, group["eps"], lr / (1 - b1**step), 1 - lr * group["weight_decay"]


def square_root(x: Tensor) -> Tensor:
    """Return the correctly rounded float32 root: torch's on a CPU is off by a last bit for 1 in 6 numbers (2.13, MKL).

    From float64 it is exact: no root of a float32 is within 2**-50 of the middle between two, and float64's error is
    less.
    """
    return x.double().sqrt_().float()


def _adamw(
    weight: Tensor, gradient: Tensor, moments: tuple[Tensor, ...], numbers: Numbers
) -> tuple[Tensor, tuple[Tensor, ...]]:
    b1, rest1, b2, rest2, root, eps, size, decay = numbers
    m, v = moments
    m = (m * b1).add_(gradient * rest1)
    v = (v * b2).add_((gradient * gradient).mul_(rest2))
    denominator = square_root(v).mul_(root).add_(eps)
    update = (m / denominator).mul_(size)
    return (weight * decay).sub_(update), (m, v)


#: Loshchilov and Hutter 2019, with torch.optim.AdamW's placing of eps: beside the corrected root
ADAMW = Rule("adamw", ("m", "v"), _adamw_numbers, _adamw)


def check_group(group: Mapping[str, Any]) -> None:
    """Raise InputError where a parameter group's numbers make no sense."""
    if not 0 <= float(group["lr"]) < math.inf:
        raise InputError(f"optimizer: lr must be a number from 0 on, found {group['lr']}")
    if len(group["betas"]) != 2 or not all(0 <= b < 1 for b in group["betas"]):
        raise InputError(f"optimizer: betas must be two numbers from 0 to below 1, found {group['betas']}")
    for name in ("eps", "weight_decay"):
        if not 0 <= group[name] < math.inf:
            raise InputError(f"optimizer: {name} must be a number from 0 on, found {group[name]}")

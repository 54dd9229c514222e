"""Hard inputs: what kernels get wrong first."""

from collections.abc import Callable

import torch
from torch import Tensor


def _normal(x: Tensor) -> Tensor:
    return x


def _outliers(x: Tensor) -> Tensor:
    x[:, :: max(x.shape[1] // 3, 1)] *= 1e4
    return x


def _many_binades(x: Tensor) -> Tensor:
    rows = torch.arange(x.shape[0], device=x.device) % 41 - 20
    return x * torch.exp2(rows.float())[:, None]


def _zero_rows(x: Tensor) -> Tensor:
    x[::3] = 0.0
    x[-1, 0] = -0.0
    return x


def _subnormal(x: Tensor) -> Tensor:
    return x * 2.0**-130


def _not_a_number(x: Tensor) -> Tensor:
    x[x.shape[0] // 2, x.shape[1] // 3], x[-1, 0] = float("nan"), -float("nan")
    return x


def _infinite(x: Tensor) -> Tensor:
    x[0, -1], x[-1, 0] = float("inf"), float("-inf")
    return x


INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": _normal,
    "outliers": _outliers,
    "many binades": _many_binades,
    "zero rows": _zero_rows,
    "subnormal": _subnormal,
    "NaN": _not_a_number,
    "infinity": _infinite,
}

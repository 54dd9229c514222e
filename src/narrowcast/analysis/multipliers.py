"""What a multiplier gets wrong, and what it would cost: errors of products in [1, 2), energies from tables."""

from typing import Any

import torch
from torch import Tensor

from narrowcast.accumulate import LMul, product
from narrowcast.analysis.roofline import Constant
from narrowcast.formats import format

_HOROWITZ = "Horowitz 2014, Computing's Energy Problem (ISSCC), 45 nm, 0.9 V"
MULTIPLY = Constant("float32 multiply", 3.7, "pJ", _HOROWITZ)
ADD = Constant("float32 add", 0.9, "pJ", _HOROWITZ)
INTEGER_ADD = Constant("int32 add", 0.1, "pJ", _HOROWITZ)
ENERGIES = (
    MULTIPLY,
    ADD,
    Constant("float16 multiply", 1.1, "pJ", _HOROWITZ),
    Constant("fp8 multiply", 0.4, "pJ", "estimate, unverified"),
    INTEGER_ADD,
)


def product_errors(names: tuple[str, ...], count: int, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Return (mean, mean square, mean relative in %) of the errors of products of pairs uniform in [1, 2).

    Args:
        names: each an L-Mul (``lmul4``), or a format to which both operands of an exact product are rounded (``e8m3``).
        count: pairs.
        seed: of the pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    x, y = (1 + torch.rand(count, generator=generator) for _ in range(2))
    exact, found = x.double() * y.double(), {}
    for name in names:
        if name.startswith("lmul"):
            error = product(name)(x, y) - exact
        else:
            error = format(name).round(x).double() * format(name).round(y).double() - exact
        found[name] = (float(error.mean()), float(error.square().mean()), float((error / exact).abs().mean()) * 100)
    return found


def lmul_by_definition(x: Tensor, y: Tensor, mantissa: int) -> Tensor:
    """Return L-Mul of positive float64 tensors from its definition: by frexp, without words or bits. A witness."""
    (xm, xe), (ym, ye) = (torch.frexp(v) for v in (x, y))
    cut, constant = 2.0**mantissa, 2.0 ** -LMul(mantissa).offset
    f = ((2 * xm - 1) * cut).floor() / cut + ((2 * ym - 1) * cut).floor() / cut + constant
    return (1 + f - f.floor()) * 2.0 ** (xe + ye - 2 + f.floor()).double()


def energy_rows() -> list[list[Any]]:
    """Return ``[operation, pJ or %, source]``: the energies that L-Mul's claim counts, and what they come to."""
    rows: list[list[Any]] = [[c.name, c.value, c.source] for c in ENERGIES]
    single = 1 - INTEGER_ADD.value / MULTIPLY.value
    dot = 1 - (INTEGER_ADD.value + ADD.value) / (MULTIPLY.value + ADD.value)
    rows.append(["saved by L-Mul, a float32 product, %", 100 * single, "calculated; the paper says 95"])
    rows.append(["saved by L-Mul, a float32 product and its addition, %", 100 * dot, "calculated; the paper says 80"])
    return rows

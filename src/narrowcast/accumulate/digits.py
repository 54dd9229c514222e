"""Wide integer products from narrow ones, exactly: a sum of shifted digit products.

``a = sum_i a_i 2**(d i)`` with digits of d bits, unsigned but the top one signed, so
``a b = sum_ij a_i b_j 2**(d (i + j))``. So a unit of small multipliers serves every width, and a 16-bit gemm is a few
8-bit ones. Source: sheet 91 (a generic construction; the paper's own circuit was not to be had).
"""

import torch
from torch import Tensor

from narrowcast.errors import InputError


def digits(x: Tensor, bits: int, digit: int) -> list[Tensor]:
    """Return the digits of ``x`` (int64, ``bits``-bit two's complement), lowest first; only the last is signed.

    Raises InputError where ``digit`` does not divide ``bits`` or a value lies outside the range.
    """
    if digit < 1 or bits % digit:
        raise InputError(f"digits of {digit} bits do not divide {bits} bits")
    half = 1 << (bits - 1)
    if x.numel() and (int(x.min()) < -half or int(x.max()) >= half):
        raise InputError(f"value {int(x.abs().max())} does not fit {bits} bits; expected {-half} to {half - 1}")
    mask = (1 << digit) - 1
    low = [(x >> (digit * i)) & mask for i in range(bits // digit - 1)]
    return [*low, x >> (bits - digit)]


def digit_matmul(a: Tensor, b: Tensor, bits: int, digit: int) -> Tensor:
    """Return ``a @ b.T`` exactly (int64) through products of digits.

    Args:
        a, b: int64 ``[M, K]`` and ``[N, K]``, ``bits``-bit values.
        bits, digit: widths; 16 and 8 make four narrow gemms.
    """
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.int64, device=a.device)
    for i, x in enumerate(digits(a, bits, digit)):
        for j, y in enumerate(digits(b, bits, digit)):
            total += (x.double() @ y.double().mT).long() << (digit * (i + j))
    return total


def products_per_cycle(bits: int, cell: int = 2, width: int = 16) -> int:
    """Return the ``bits``-bit products per cycle of an array of ``cell``-bit units that makes one of ``width`` bits."""
    if bits % cell or width % bits:
        raise InputError(f"an array of {cell}-bit cells for {width} bits cannot be split into products of {bits} bits")
    return (width // bits) ** 2

"""Digit products are exact: every 8-bit pair, random 16-bit gemms against Python's integers."""

import pytest
import torch

from narrowcast.accumulate.digits import digit_matmul, digits, products_per_cycle
from narrowcast.errors import InputError


@pytest.mark.parametrize("digit", [2, 4, 8])
def test_every_signed_pair_of_8_bits(digit):
    x = torch.arange(-128, 128)
    assert torch.equal(digit_matmul(x[:, None], x[:, None], 8, digit), x[:, None] * x)
    assert torch.equal(sum(d << (digit * i) for i, d in enumerate(digits(x, 8, digit))), x)
    assert all(int(d.min()) >= 0 for d in digits(x, 8, digit)[:-1])


def test_a_16_bit_gemm_from_four_8_bit_ones():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-32768, 32768, (5, 300), generator=g) for _ in range(2))
    a[0], b[0] = -32768, -32768
    exact = [[sum(int(x) * int(y) for x, y in zip(r, c, strict=True)) for c in b] for r in a]
    assert digit_matmul(a, b, 16, 8).tolist() == exact


def test_the_ideal_array_and_bad_input():
    assert [products_per_cycle(b) for b in (16, 8, 4, 2)] == [1, 4, 16, 64]
    for make in (
        lambda: digits(torch.tensor([1]), 8, 3),
        lambda: digits(torch.tensor([128]), 8, 4),
        lambda: products_per_cycle(3),
    ):
        with pytest.raises(InputError):
            make()

"""The exact arithmetic of what stands between the gemms, against what we did not write."""

import ctypes
import ctypes.util
import math

import pytest
import torch

from narrowcast.passes import gelu, gelu_backward, sigmoid, swiglu_backward
from narrowcast.passes.wide import fused

LIBM = ctypes.util.find_library("m")


def numbers(count: int, seed: int, spread: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    powers = torch.randint(-spread, spread, (count,), generator=g)
    return torch.randn(count, generator=g) * torch.exp2(powers.float())


@pytest.mark.skipif(LIBM is None, reason="no C library to take fmaf from")
def test_fused_is_the_c_librarys_fmaf():
    """Sums that cancel, that end beside a middle between two float32 numbers, subnormal and overflowing ones."""
    fmaf = ctypes.CDLL(LIBM).fmaf
    fmaf.restype, fmaf.argtypes = ctypes.c_float, [ctypes.c_float] * 3
    count, g = 8000, torch.Generator().manual_seed(7)
    a, b = numbers(count, 1, 30), numbers(count, 2, 30)
    ulp = 2.0**-23
    near_one = [
        1 + ulp * torch.randint(0, 3, (count,), generator=g),
        0.5 + ulp / 2 * torch.randint(-2, 3, (count,), generator=g),
    ]
    whole = torch.randint(1 << 23, 1 << 24, (count,), generator=g).float()
    cases = [
        (a, b, -(a.double() * b.double()).float()),
        (a, b, numbers(count, 3, 60)),
        (*near_one, whole),
        (1e-38 * a, b, 1e-38 * numbers(count, 4, 20)),
        (3e37 * a, b, 3e37 * numbers(count, 5, 20)),
    ]  # fmt: skip
    for x, y, z in cases:
        expected = torch.tensor([fmaf(*row) for row in torch.stack([x, y, z], 1).tolist()])
        assert torch.equal(fused(x, y, z).view(torch.int32), expected.view(torch.int32))
    special = torch.tensor([math.inf, -math.inf, math.nan, 1.0])
    assert fused(special, 2.0, 1.0).tolist()[:2] == [math.inf, -math.inf]
    assert fused(special, special, -special).isnan().tolist() == [True, False, True, False]
    inexact = (cases[2][0].double() * cases[2][1].double() + cases[2][2].double()).float()
    assert not torch.equal(inexact, fused(*cases[2]))  # float64's sum, rounded twice, is something else


def test_the_exponential_is_close_and_its_ends_are_sane():
    x = torch.linspace(-80, 80, 400001)
    assert (sigmoid(x) / torch.sigmoid(x.double()) - 1).abs().max() < 7e-6
    ends = sigmoid(torch.tensor([math.inf, 100.0, -100.0, -math.inf, math.nan]))
    assert ends.tolist()[:2] == [1.0, 1.0] and 0 < ends[3] == ends[2] < 1e-35 and ends[4] == 1


def test_gradients_are_those_of_autograd():
    g, x, up = (numbers(4096, seed, 2).double().requires_grad_() for seed in (1, 2, 3))
    for function, ours in (
        (lambda t: torch.nn.functional.gelu(t, approximate="tanh"), lambda: gelu_backward(g.float(), x.float())),
        (lambda t: torch.nn.functional.silu(t) * up, lambda: swiglu_backward(g.float(), x.float(), up.float())[:4096]),
    ):
        (wanted,) = torch.autograd.grad(function(x), x, g)
        assert (ours() - wanted).abs().max() < 2e-5 * wanted.abs().max()
    exact = torch.nn.functional.gelu(x, approximate="tanh")
    assert (gelu(x.float()) - exact).abs().max() < 1e-5 * exact.abs().max()

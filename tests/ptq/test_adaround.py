"""Learned rounding: every weight goes to one of its neighbours, and the outputs are never worse than with nearest."""

import pytest
import torch

from narrowcast.errors import InputError
from narrowcast.ptq import Learned, output_error
from narrowcast.quantize import cast


@pytest.mark.parametrize("spelling", ["int4/row/fp32", "e2m1fn/1x32/fp32", "e3m0fn/row/fp32"])
def test_outputs_improve_and_values_are_neighbours(spelling):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(300, 64, generator=g) @ (torch.eye(64) + 0.3 * torch.randn(64, 64, generator=g))
    w, h = torch.randn(24, 64, generator=g), x.T @ x
    settled = cast(spelling).settle(w)
    found = Learned().solve(w, h, settled)
    assert output_error(w, found.values, h) < output_error(w, settled.apply(w), h)
    into, back = settled.factors()
    low, high = (n * back[0] for n in settled.cast.format.neighbours(w * into))
    assert ((found.values == low) | (found.values == high) | (found.values == settled.apply(w))).all()
    assert torch.equal(found.quantized.dequantize(), found.values)


def test_with_uncorrelated_inputs_nearest_stays():
    w = torch.randn(8, 32)
    settled = cast("int4/row/fp32").settle(w)
    assert torch.equal(Learned(steps=50).solve(w, torch.eye(32), settled).values, settled.apply(w))
    with pytest.raises(InputError):
        Learned(steps=0)

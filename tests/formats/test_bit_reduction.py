"""Bits taken off a float32, as papers do it with masks and clips, are roundings to formats: the same bits.

Lee et al. 2024, "To FP8 and Back Again" (mantissa masks, exponents clipped); Li et al. 2018, "Exploration of Numerical
Precision" (truncation of everything that is stored).
"""

import math

import numpy as np
import pytest
import torch
from tests.witnesses import first_difference, random_float32

import narrowcast as nc
from narrowcast.formats import format as format_
from narrowcast.formats import rounding

PATTERNS = random_float32(1 << 16)
NUMBERS = PATTERNS[~PATTERNS.isnan()]  # a mask can turn a NaN into an infinity


@pytest.mark.parametrize("mantissa", range(1, 23))
def test_masking_the_low_mantissa_bits_is_rounding_toward_zero(mantissa):
    """Down to one bit: ``e8m0`` is the unsigned scale of the catalogue."""
    masked = NUMBERS.numpy().view(np.uint32) & np.uint32(0xFFFFFFFF << (23 - mantissa) & 0xFFFFFFFF)
    found = format_(f"e8m{mantissa}").round(NUMBERS, rounding("toward-zero"))
    assert not first_difference(found, masked.view(np.float32), NUMBERS)


@pytest.mark.parametrize("exponent", range(2, 8))
def test_clipping_the_exponent_is_a_format_without_subnormals_that_saturates(exponent):
    """Bfloat16 numbers: beyond the reduced range the largest, below its normals zero, all others as they are."""
    bias = 2 ** (exponent - 1) - 1
    x = NUMBERS.bfloat16().float()
    largest, smallest = (2 - 2.0**-7) * 2.0**bias, 2.0 ** (1 - bias)
    clipped = torch.where(x.abs() < smallest, 0.0, x.abs().clamp_max(largest)).copysign(x)
    fmt = format_(f"e{exponent}m7_ftz_sat")
    assert not first_difference(fmt.round(x, rounding("toward-zero")), clipped, x)


def test_the_worked_numbers_of_the_sheets():
    x = torch.tensor([1.1875, 1.99, -1.99, 0.3])
    assert nc.round(x, "e8m3", "toward-zero")[0] == 1.125
    assert nc.round(x, "e8m3")[0] == 1.25
    assert nc.round(x, "e8m2", "toward-zero")[1:].tolist() == [1.75, -1.75, 0.25]
    e7m7 = format_("e7m7")
    assert (math.frexp(e7m7.max)[1] - 1, e7m7.smallest_normal) == (63, 2.0**-62)
    updated = torch.tensor([1 + 0.001, 1 - 0.001])  # a tiny update is lost in one direction, a whole step in the other
    assert nc.round(updated, "e8m7", "toward-zero").tolist() == [1, 0.99609375]


def test_truncation_shrinks_by_half_its_largest_error_and_nearest_does_not():
    """Mean relative error of truncating log-uniform numbers: 2**-(M+1) / (2 ln 2), about; nearest has none."""
    x = torch.exp2(torch.linspace(0, 8, 1 << 18, dtype=torch.float64))
    for mantissa in (2, 5, 7):
        errors = {mode: ((nc.round(x, f"e8m{mantissa}", mode) - x) / x) for mode in ("toward-zero", "nearest-even")}
        expected = -(2.0 ** -(mantissa + 1)) / (2 * math.log(2))
        assert float(errors["toward-zero"].mean()) == pytest.approx(expected, rel=0.07)
        assert float(errors["toward-zero"].min()) > -(2.0**-mantissa)
        assert abs(float(errors["nearest-even"].mean())) < 0.1 * abs(expected)
        assert float(errors["nearest-even"].abs().max()) <= 2.0 ** -(mantissa + 1)

"""Logarithmic numbers: the values and errors that the method's sheet prints, and thresholds that are exact."""

import math

import mpmath
import numpy as np
import pytest
import torch

import narrowcast as nc
from narrowcast.errors import InputError
from narrowcast.formats import Logarithmic

ROOTS = [1, 1.090508, 1.189207, 1.296840, 1.414214, 1.542211, 1.681793, 1.834008]  # 2**(r / 8)


def test_printed_values():
    fmt = nc.format("lns8_8")
    assert fmt.decode(torch.arange(8, 16)).tolist() == pytest.approx([2 * r for r in ROOTS], rel=5e-7)
    assert fmt.max == pytest.approx(60096.777, rel=1e-7)
    assert nc.format("lns4_1").decode(torch.arange(8)).tolist() == [0, 2, 4, 8, 16, 32, 64, 128]
    halves = nc.format("lns4_2").decode(torch.arange(1, 8)).tolist()
    assert halves == pytest.approx([1.414, 2, 2.828, 4, 5.657, 8, 11.314], rel=1e-3)


def test_each_value_is_the_float32_nearest_to_its_power():
    fmt = nc.format("lns16_2048")
    ks = [1, 2, 3, 1000, 2047, 2048, 4097, 20001, 32767]
    with mpmath.workprec(200):
        expected = [float(np.float32(float(mpmath.power(2, mpmath.mpf(k) / 2048)))) for k in ks]
    assert fmt.decode(torch.tensor(ks)).tolist() == expected


@pytest.mark.parametrize(
    ("gamma", "error"), [(1, 0.4142), (2, 0.1892), (4, 0.0905), (8, 0.0443), (16, 0.0219), (32, 0.0109)]
)
def test_greatest_relative_error_is_half_a_step_of_the_logarithm(gamma, error):
    fmt = Logarithmic("any", 8, gamma, bias=2 if gamma <= 2 else 0)
    x = torch.logspace(math.log2(4 * fmt.smallest), math.log2(fmt.max), 200_001, base=2, dtype=torch.float64)
    worst = (fmt.round(x).double() / x - 1).abs().max()
    assert worst == pytest.approx(2 ** (1 / (2 * gamma)) - 1, rel=1e-3) == pytest.approx(error, abs=6e-5)


@pytest.mark.parametrize(("gamma", "db"), [(1, 13.8), (2, 19.9), (4, 26.0), (8, 32.0), (16, 38.0)])
def test_noise_on_the_normal_distribution(gamma, db):
    fmt = Logarithmic("any", 8, gamma, bias=0 if gamma > 1 else 64)
    x = torch.randn(1 << 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = float(x.abs().max()) / fmt.max
    noise = (fmt.round(x / scale).double() * scale - x).square().mean()
    assert -10 * math.log10(noise) == pytest.approx(db, abs=0.15)


def test_a_product_is_a_sum_of_logarithms():
    fmt = nc.format("lns8_8")
    a, b = torch.arange(1, 63).repeat(62), torch.arange(1, 63).repeat_interleave(62)
    product = fmt.decode(a).double() * fmt.decode(b).double()
    assert torch.equal(fmt.encode(product).int(), (a + b).int())


def test_neighbours_are_parted_at_the_geometric_mean():
    """The float32s on either side of each irrational threshold, found with 200 bits, go to different codes."""
    fmt = nc.format("lns8_8")
    with mpmath.workprec(200):
        middles = [mpmath.power(2, mpmath.mpf(2 * k + 1) / 16) for k in range(1, 127)]
        near = [np.float32(float(m)) for m in middles]
        low = [
            n if mpmath.mpf(float(n)) < m else np.nextafter(n, np.float32(0))
            for n, m in zip(near, middles, strict=True)
        ]
    low = torch.from_numpy(np.array(low))
    high = torch.nextafter(low, torch.tensor(torch.inf))
    assert fmt.encode(low).tolist() == list(range(1, 127))
    assert fmt.encode(high).tolist() == list(range(2, 128))


def test_zero_its_neighbourhood_and_nan():
    fmt = nc.format("lns8_8b8")
    smallest = 2 ** (1 / 8 - 8)
    assert fmt.smallest == pytest.approx(smallest, rel=1e-7)
    x = torch.tensor([0.0, -0.0, 0.49 * smallest, 0.51 * smallest, -0.51 * smallest, torch.nan, torch.inf, -torch.inf])
    assert fmt.encode(x).tolist() == [0, 0, 0, 1, 0x81, 0x80, 0x7F, 0xFF]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("lns2_8", "3 to 16 bits"), ("lns8_3", "power of two"), ("lns16_1", "range"), ("lns8_8b127", "range")],
)
def test_bad_fields_are_refused(name, complaint):
    with pytest.raises(InputError, match=complaint):
        nc.format(name)

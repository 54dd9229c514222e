"""Rounding modes as functions of integers, and stochastic rounding counted over every draw there is."""

from fractions import Fraction

import pytest
import torch
from tests.references import goes_up

from narrowcast.errors import InputError
from narrowcast.formats import RANDOM_BITS, Integer, Minifloat, formats, rounding, roundings
from narrowcast.formats import format as format_

SMALL = [f for f in formats().values() if isinstance(f, Minifloat) and f.bits <= 8]
FRACTIONS = [0.0, 2.0**-9, 1 / 256, 3 / 512, 0.25, 0.5, 0.5 + 2.0**-9, 0.75, 255 / 256, 511 / 512]


@pytest.mark.parametrize("mode", roundings())
def test_every_mode_on_every_small_integer(mode):
    """n / 2**shift for all n below 4 * 2**shift, both signs, and all draws that differ in the leading 8 bits."""
    shift = 5
    n = torch.arange(4 << shift, dtype=torch.int32)
    draws = torch.arange(0, 1 << RANDOM_BITS, 1 << 8, dtype=torch.int32) if rounding(mode).random else [0]
    for sign in (0, -1):
        for draw in draws:
            found = rounding(mode)(n, shift, torch.full_like(n, sign), torch.full_like(n, int(draw)))
            for k, code in zip(n.tolist(), found.tolist(), strict=True):
                floor, rest = divmod(k, 1 << shift)
                fraction = Fraction(rest, 1 << shift)
                up = rest > 0 and goes_up(mode, floor % 2 == 1, fraction, sign < 0, int(draw), floor == 0, shift)
                assert code == floor + up, (mode, k, sign, int(draw))


@pytest.mark.parametrize("mode", roundings())
def test_no_fractional_bits_nothing_to_round(mode):
    n = torch.arange(10, dtype=torch.int32)
    assert torch.equal(rounding(mode)(n, 0, torch.zeros_like(n), torch.zeros_like(n)), n)


def cells(fmt) -> tuple[torch.Tensor, torch.Tensor]:
    """Lower and upper ends of every grid cell of the non-negative values."""
    values = fmt.values()[fmt.values() >= 0]
    return values[:-1], values[1:]


@pytest.mark.parametrize("fmt", SMALL, ids=str)
def test_stochastic_8_goes_up_for_exactly_the_discarded_fraction_of_256_draws(fmt):
    """Every one of the 256 draws, in every grid cell, for fractions on and between the multiples of 1/256."""
    low, high = cells(fmt)
    fraction = torch.tensor(FRACTIONS, dtype=torch.float64)
    x = (low[:, None] + fraction * (high - low)[:, None]).float()
    draws = torch.arange(256, dtype=torch.int32) << 8
    shape = (*x.shape, 256)
    rounded = fmt.round(x[..., None].expand(shape), rounding("stochastic-8"), draws.expand(shape)).double()
    assert ((rounded == low[:, None, None]) | (rounded == high[:, None, None])).all()
    ups = (rounded > low[:, None, None]).sum(-1)
    assert torch.equal(ups, (fraction * 256).floor().long().expand(ups.shape))


@pytest.mark.parametrize("name", ["e4m3fn", "e2m1fn", "e8m0", "ue5m3", "e5m2fnuz", "bfloat16", "int8", "int4_full"])
def test_stochastic_goes_up_for_exactly_the_discarded_fraction_of_65536_draws(name):
    """All draws of the full 16 bits; a fraction finer than 2**-16 never goes up more often than its floor."""
    fmt = format_(name)
    one = 2.0 * fmt.smallest if isinstance(fmt, Integer) else 1.0
    values = fmt.values()
    step = values[values > one][0] - one
    fraction = torch.tensor([0.0, 2.0**-16, 1.5 * 2.0**-16, 2.0**-17, 0.3, 0.5, 1 - 2.0**-16], dtype=torch.float64)
    x = (one + fraction * step).float()
    exact = (x.double() - one) / step  # what float32 could hold of it
    draws = torch.arange(1 << 16, dtype=torch.int32)
    shape = (len(x), 1 << 16)
    for sign in (1.0, -1.0) if values[0] < -one else (1.0,):
        rounded = fmt.round((sign * x)[:, None].expand(shape), rounding("stochastic"), draws.expand(shape)).double()
        ups = (rounded.abs() > one).sum(-1)
        assert torch.equal(ups, (exact * 65536).floor().long())


@pytest.mark.parametrize("bits", range(1, RANDOM_BITS))
def test_stochastic_r_uses_the_r_leading_bits(bits):
    fmt, mode = format_("e2m1fn"), rounding(f"stochastic-{bits}")
    x = torch.linspace(2, 3, 33)[1:-1, None].expand(-1, 1 << bits)
    leading = torch.arange(1 << bits, dtype=torch.int32) << (RANDOM_BITS - bits)
    trailing = (1 << (RANDOM_BITS - bits)) - 1
    rounded = fmt.round(x, mode, leading.expand(x.shape))
    assert torch.equal(fmt.round(x, mode, (leading | trailing).expand(x.shape)), rounded)
    fraction = (x[:, 0] - 2).double()
    assert torch.equal((rounded == 3).sum(-1), (fraction * 2**bits).floor().long())


@pytest.mark.parametrize("name", ["e4m3fn", "e2m1fn", "e8m0", "ue5m3", "e4m3fn_ftz_open", "bfloat16", "int8"])
def test_stochastic_equal_goes_up_for_exactly_half_of_all_draws(name):
    """However close the value is to either neighbour: 2**-23 above one is inexact, and one itself is not."""
    fmt = format_(name)
    one = 2.0 * fmt.smallest if isinstance(fmt, Integer) else 1.0
    values = fmt.values()
    step = float(values[values > one][0] - one)
    x = one + step * torch.tensor([0.0, 2.0**-20, 0.3, 0.5, 1 - 2.0**-16])
    draws = torch.arange(1 << 16, dtype=torch.int32).expand(5, -1)
    for sign in (1.0, -1.0) if values[0] < -one else (1.0,):
        rounded = fmt.round((sign * x)[:, None].expand_as(draws), rounding("stochastic-equal"), draws).double()
        inexact = x.double() > one  # of bfloat16's step, float32 holds no more than 16 bits
        assert inexact.sum() >= 3
        assert torch.equal((rounded.abs() > one).sum(-1), inexact.long() << 15)
        mean = rounded[inexact].mean(-1).abs()  # the midpoint, wherever the value is
        assert torch.equal(mean, torch.full_like(mean, one + step / 2))


@pytest.mark.parametrize("name", ["e4m3fn", "e2m1fn", "e3m0fn", "ue5m3", "e4m3fn_ftz_open", "float16", "int8", "q1.6"])
def test_stochastic_flush_is_exact_below_the_smallest_value_and_nearest_even_above(name):
    fmt = format_(name)
    fraction = torch.tensor([0.0, 2.0**-16, 2.0**-15, 3 * 2.0**-16, 0.3, 0.5, 1 - 2.0**-16], dtype=torch.float64)
    x = (fraction * fmt.smallest).float()
    draws = torch.arange(1 << 16, dtype=torch.int32).expand(len(x), -1)
    mode, exact = rounding("stochastic-flush"), x.double() / fmt.smallest
    resolution = 1 << 14 if name == "float16" else 1 << 15
    for sign in (1.0, -1.0) if fmt.values()[0] < 0 else (1.0,):
        rounded = fmt.round((sign * x)[:, None].expand_as(draws), mode, draws).double().abs()
        assert ((rounded == 0) | (rounded == fmt.smallest)).all()
        assert torch.equal((rounded > 0).sum(-1), (exact * resolution).floor().long() * ((1 << 16) // resolution))
    above = fmt.smallest * torch.linspace(1, 40, 1171)
    for draw in (0, 1 << 15, 65535):
        found = fmt.round(above, mode, torch.full(above.shape, draw, dtype=torch.int32))
        assert torch.equal(found, fmt.round(above))


def test_stochastic_mean_is_unbiased_within_the_resolution_of_the_draws():
    """Averaged over all draws the result is x, less at most 2**-16 of a step."""
    fmt, x = format_("e4m3fn"), torch.linspace(-2, 2, 41)
    draws = torch.arange(1 << 16, dtype=torch.int32).expand(41, -1)
    mean = fmt.round(x[:, None].expand_as(draws), rounding("stochastic"), draws).double().mean(-1)
    step = 0.125  # the widest step in [-2, 2]
    assert ((mean - x.double()).abs() <= step * 2.0**-16).all()


def test_stochastic_without_random_bits_is_an_error():
    for fmt in ("e4m3fn", "bfloat16", "int8"):
        with pytest.raises(InputError, match="needs random bits"):
            format_(fmt).round(torch.ones(2), rounding("stochastic"))


def test_unknown_mode_names_the_nearest():
    with pytest.raises(InputError, match="unknown rounding 'nearest_even'; nearest: nearest-even"):
        rounding("nearest_even")


def test_a_mode_passes_through_and_prints_its_name():
    for name, mode in roundings().items():
        assert rounding(mode) is mode
        assert str(mode) == name
        assert mode.random == name.startswith("stochastic")

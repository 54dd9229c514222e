"""What every rounding mode promises, on formats that differ as much as formats can."""

import pytest
import torch
from tests.witnesses import first_difference

from narrowcast.formats import RANDOM_BITS, rounding, roundings
from narrowcast.formats import format as format_

FORMATS = ["hif8", "fp4_bnb", "e4m3fn", "e2m1fn", "e5m2fnuz", "e3m0fn", "ue5m3", "bfloat16", "int4", "uint8", "q1.6"]
TOP = (1 << RANDOM_BITS) - 1
every_mode = pytest.mark.parametrize("mode", roundings())


def inside(fmt) -> torch.Tensor:
    """Inputs within the range of ``fmt``, dense around each of (at most 200 of) its values."""
    values = fmt.values()
    values = values[:: max(1, len(values) // 200)]
    cuts = torch.linspace(0, 1, 9, dtype=torch.float64)[:-1, None]
    return (values[:-1] + cuts * values.diff()).flatten().float()


def draws(x, value):
    return torch.full(x.shape, value, dtype=torch.int32)


def neighbours(fmt, x):
    return (fmt.round(x, rounding(m)).double() for m in ("down", "up"))


@pytest.mark.parametrize("name", FORMATS)
@every_mode
def test_the_result_is_one_of_the_two_neighbours_and_exact_values_stay(mode, name):
    fmt = format_(name)
    x = inside(fmt)
    down, up = neighbours(fmt, x)
    for draw in (0, 1, 1 << (RANDOM_BITS - 1), TOP):
        rounded = fmt.round(x, rounding(mode), draws(x, draw)).double()
        assert ((rounded == down) | (rounded == up)).all()
        exact = down == up
        assert torch.equal(rounded[exact], x.double()[exact])


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", [m for m in roundings() if m.startswith("nearest")])
def test_nearest_modes_differ_only_on_ties(mode, name):
    fmt = format_(name)
    x = inside(fmt)
    down, up = neighbours(fmt, x)
    rounded = fmt.round(x, rounding(mode)).double()
    below, above = x.double() - down, up - x.double()
    assert torch.equal(rounded[below < above], down[below < above])
    assert torch.equal(rounded[below > above], up[below > above])
    tie = (below == above) & (down < up)
    assert tie.any()
    outer = torch.where(x < 0, down, up)[tie]
    inner = torch.where(x < 0, up, down)[tie]
    match mode:
        case "nearest-away":
            assert torch.equal(rounded[tie], outer)
        case "nearest-zero":
            assert torch.equal(rounded[tie], inner)
        case "nearest-up":
            assert torch.equal(rounded[tie], up[tie])
        case "nearest-down":
            assert torch.equal(rounded[tie], down[tie])
        case "nearest-even":
            assert (fmt.encode(rounded[tie].float()) % 2 == 0).all()


@pytest.mark.parametrize("name", FORMATS)
def test_odd_takes_the_odd_code_of_every_inexact_value(name):
    fmt = format_(name)
    x = inside(fmt)
    down, up = neighbours(fmt, x)
    inexact = down != up
    assert (fmt.encode(x, rounding("odd"))[inexact] % 2 == 1).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", [m for m in roundings() if rounding(m).random])
def test_stochastic_modes_go_from_truncation_upwards_as_the_draw_grows(mode, name):
    fmt = format_(name)
    x = inside(fmt)
    x = x[x.abs() < fmt.smallest] if mode == "stochastic-flush" else x  # beyond, it is no stochastic mode
    previous = fmt.round(x, rounding(mode), draws(x, 0)).abs()
    assert not first_difference(previous, fmt.round(x, rounding("toward-zero")).abs(), x)
    for draw in (1 << 12, 1 << 14, 1 << 15, 3 << 14, TOP):
        now = fmt.round(x, rounding(mode), draws(x, draw)).abs()
        assert (now >= previous).all()
        previous = now


@every_mode
def test_the_input_and_the_draws_are_left_alone(mode):
    x, random = torch.linspace(-7, 7, 99), torch.arange(99, dtype=torch.int32)
    for name in FORMATS:
        format_(name).round(x, rounding(mode), random)
        format_(name).encode(x, rounding(mode), random)
    assert torch.equal(x, torch.linspace(-7, 7, 99))
    assert torch.equal(random, torch.arange(99, dtype=torch.int32))

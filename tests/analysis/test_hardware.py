"""The cost model of a multiply-accumulate: spans against exact products, parts against hand counts."""

import math
from fractions import Fraction

import pytest

from narrowcast.analysis.hardware import mac, multiplier_gates, product_span, significand, trust
from narrowcast.errors import InputError
from narrowcast.formats import Minifloat, Specials, format


def finite(exponent: int, mantissa: int) -> Minifloat:
    """All codes finite, as sheet 20 counts them."""
    return Minifloat("finite", exponent, mantissa, (1 << (exponent - 1)) - 1, Specials.NONE)


@pytest.mark.parametrize(
    ("fmt", "span"),
    [
        (format("int8"), 14),
        (finite(2, 5), 16),
        (finite(3, 4), 22),
        (finite(4, 3), 36),
        (finite(5, 2), 66),
        (format("e4m3fn"), 36),
    ],
    ids=str,
)
def test_the_spans_of_sheet_20(fmt, span):
    assert product_span(fmt, fmt) == span


@pytest.mark.parametrize("name", ["int8", "int4", "e4m3fn", "e5m2", "e2m1fn", "e3m2fn", "e2m3fn"])
def test_every_product_lies_within_the_span(name):
    fmt = format(name)
    values = [Fraction(v) for v in fmt.values().tolist() if v > 0]
    step = min(values) ** 2
    products = {a * b / step for a in values for b in values}
    assert all(p.denominator == 1 for p in products)
    assert max(products) < 2 ** product_span(fmt, fmt) and max(products) >= 2 ** (product_span(fmt, fmt) - 1)


def test_significands():
    widths = {"int8": 7, "int4": 3, "e4m3fn": 4, "e5m2": 3, "e2m1fn": 2, "e1m2fn": 3, "float16": 11}
    assert {name: significand(format(name)) for name in widths} == widths


def test_the_parts_of_an_int8_unit_by_hand():
    unit = mac(format("int8"), format("int8"), depth=256)
    assert (unit.exponent, unit.shifter, unit.decoder, unit.accumulator_bits) == (0, 0, 0, 22)
    assert unit.multiplier == 7 * 7 * 1.5 + 6 * 7 * 9
    assert unit.accumulator == 22 * 15
    assert unit.gates == unit.multiplier + unit.accumulator


def test_floats_pay_for_exponents_and_wide_sums():
    costs = {
        name: mac(format(name), format(name)).gates for name in ("int4", "int8", "e2m1fn", "e4m3fn", "e5m2", "float16")
    }
    assert costs["int4"] < costs["e2m1fn"] < costs["int8"] < costs["e4m3fn"] < costs["e5m2"] < costs["float16"]
    mixed = mac(format("int4"), format("e4m3fn"))
    assert mixed.shifter > 0 and mixed.lanes == 2
    assert mac(format("e2m1fn"), format("e2m1fn")).lanes == 4


def test_the_model_is_near_published_multipliers():
    assert set(trust()) == {"int32 multiply", "float16 multiply", "float32 multiply"}
    assert all(0.5 < ratio < 3.5 for ratio in trust().values()), trust()
    assert math.isclose(
        mac(format("int8"), format("int8")).energy / mac(format("int8"), format("int8")).area, 0.2 / 282
    )


def test_what_nobody_would_build_is_refused():
    with pytest.raises(InputError, match="at most 16"):
        mac(format("float32"), format("int8"))
    with pytest.raises(InputError, match="depth"):
        mac(format("int8"), format("int8"), 0)
    assert multiplier_gates(1, 1) == 1.5

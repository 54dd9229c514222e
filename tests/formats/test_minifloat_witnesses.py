"""Every minifloat against libraries that narrowcast's authors did not write, exhaustively and without tolerance.

Known, verified differences, each stated as a test below: what ml_dtypes does with NaN where a format has none, with
e8m0's ties and its lowest binade, and with float64; what gfloat does below e8m0's range.
"""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
import torch
from tests.witnesses import (
    GFLOAT_MODES,
    ML_DTYPES,
    every_half,
    first_difference,
    gfloat_encode,
    gfloat_round,
    ml_dtypes_cast,
    ml_dtypes_decode,
    random_float32,
)

from narrowcast.formats import Minifloat, Specials, formats, rounding
from narrowcast.formats import format as format_
from narrowcast.formats.decoding import converted

HALVES = every_half()
RANDOM = random_float32(1 << 20)
WITHOUT_NAN = [name for name in ML_DTYPES if format_(name).specials is Specials.NONE]
MINIFLOATS = [f for f in formats().values() if isinstance(f, Minifloat)]


def open_ended(name: str) -> Minifloat:
    """The format under ml_dtypes' overflow policy: to infinity or NaN instead of the maximum."""
    return dataclasses.replace(format_(name), saturate=False)


def compare_with_ml_dtypes(name: str, x: torch.Tensor) -> None:
    fmt = open_ended(name)
    codes, values = ml_dtypes_cast(name, x)
    rounded, encoded = fmt.round(x), fmt.encode(x)
    assert not first_difference(rounded, values, x)
    assert not first_difference(fmt.decode(encoded), values, x)
    is_number = ~np.isnan(values)  # NaN payloads are nobody's promise
    assert np.array_equal(encoded.numpy()[is_number], codes[is_number])


def comparable(name: str, x: torch.Tensor) -> torch.Tensor:
    """Leave out the inputs on which ml_dtypes is known to differ."""
    if name in WITHOUT_NAN:
        return x[~x.isnan()]
    if name == "e8m0":
        bits = x.view(torch.int32)
        return x[((bits & 0x7FFFFF) != 0x400000) & ((x <= 2.0**-127) | (x >= 2.0**-126) | x.isnan())]
    return x


@pytest.mark.parametrize("source", HALVES)
@pytest.mark.parametrize("name", ML_DTYPES)
def test_every_16_bit_input_casts_as_in_ml_dtypes(name, source):
    compare_with_ml_dtypes(name, comparable(name, HALVES[source]))


@pytest.mark.parametrize("name", ML_DTYPES)
def test_a_million_float32_patterns_cast_as_in_ml_dtypes(name):
    compare_with_ml_dtypes(name, comparable(name, RANDOM))


@pytest.mark.parametrize("name", ML_DTYPES)
def test_every_code_decodes_as_in_ml_dtypes(name):
    fmt = format_(name)
    assert not first_difference(fmt.decode(fmt.codes()), ml_dtypes_decode(name, fmt.codes()), fmt.codes())


@pytest.mark.parametrize("name", ["e4m3fn", "e5m2", "bfloat16", "float16"])
def test_torch_converts_every_code_to_what_its_fields_say(name):
    fmt = format_(name)
    facts = (fmt.exponent, fmt.mantissa, fmt.bias, fmt.specials)
    found, by_fields = converted(fmt.codes(), *facts), fmt._decode_fields(fmt.codes().int())
    number = ~by_fields.isnan()
    assert torch.equal(found.isnan(), ~number)
    assert torch.equal(found[number].view(torch.int32), by_fields[number].view(torch.int32))


@pytest.mark.parametrize("name", ML_DTYPES)
def test_facts_are_those_of_ml_dtypes_finfo(name):
    fmt, info = format_(name), ml_dtypes.finfo(ML_DTYPES[name])
    facts = (fmt.max, fmt.smallest_normal, fmt.smallest, fmt.precision)
    assert facts == (info.max, info.smallest_normal, info.smallest_subnormal, info.nmant)


@pytest.mark.parametrize("saturate", [True, False], ids=["saturating", "open-ended"])
@pytest.mark.parametrize("mode", GFLOAT_MODES)
@pytest.mark.parametrize("fmt", MINIFLOATS, ids=str)
def test_every_16_bit_input_rounds_as_in_gfloat(fmt, mode, saturate):
    if fmt.specials is Specials.NONE and not saturate:
        assert dataclasses.replace(fmt, saturate=False).round(torch.tensor(torch.inf)) == fmt.max
        return  # a format without infinity and NaN can do nothing but saturate, and gfloat refuses to try
    fmt = dataclasses.replace(fmt, saturate=saturate)
    x = torch.cat(list(HALVES.values()))
    if not fmt.signed:  # gfloat has no rule for negative input to an unsigned format, nor for zero without a zero
        x = x[((x >= fmt.smallest) if fmt.name == "e8m0" else ~x.signbit()) | x.isnan()]
    expected = gfloat_round(fmt, x, mode)
    assert not first_difference(fmt.round(x, rounding(mode)), expected, x)
    if fmt.bits <= 16:
        is_number = ~np.isnan(expected)
        codes = fmt.encode(x, rounding(mode)).numpy()
        assert np.array_equal(codes[is_number], gfloat_encode(fmt, expected[is_number]))


@pytest.mark.parametrize("name", WITHOUT_NAN)
def test_nan_without_a_code_is_plus_zero_here_and_minus_zero_in_ml_dtypes(name):
    fmt, nan = format_(name), torch.tensor([torch.nan])
    assert ml_dtypes_cast(name, nan)[0] == 1 << (fmt.bits - 1)
    assert fmt.encode(nan) == 0
    assert fmt.round(nan).isnan().all()


def test_e8m0_ties_go_to_the_even_code_here_and_up_in_ml_dtypes():
    """IEEE P3109 (and gfloat after it) breaks ties of one-digit formats to the even code."""
    fmt, exponents = open_ended("e8m0"), torch.arange(-126, 127)
    ties = (1.5 * 2.0 ** exponents.double()).float()
    below = exponents + 127
    assert torch.equal(fmt.encode(ties).int(), below + below % 2)
    assert np.array_equal(ml_dtypes_cast("e8m0", ties)[0], below.numpy() + 1)
    assert not first_difference(fmt.round(ties), gfloat_round(fmt, ties, "nearest-even"), ties)


def test_e8m0_lowest_binade_rounds_to_nearest_here_and_up_in_ml_dtypes():
    """Float32 is subnormal between 2^-127 and 2^-126; ml_dtypes sends that whole open interval to 2^-126."""
    inside = torch.arange(0x400001, 0x800000, 0x1FFF, dtype=torch.int32).view(torch.float32)
    assert set(ml_dtypes_cast("e8m0", inside)[0]) == {1}
    fmt = open_ended("e8m0")
    assert torch.equal(fmt.encode(inside).int(), (inside > 1.5 * 2.0**-127).int())
    assert not first_difference(fmt.round(inside), gfloat_round(fmt, inside, "nearest-even"), inside)


def test_below_the_range_of_e8m0_lies_its_smallest_value():
    """gfloat rounds such inputs to powers of two that have no code; ml_dtypes and we give code 0."""
    tiny = torch.tensor([1e-45, 1e-39, 2.0**-128])
    assert format_("e8m0").encode(tiny).tolist() == [0, 0, 0]
    assert ml_dtypes_cast("e8m0", tiny)[0].tolist() == [0, 0, 0]
    assert (gfloat_round(format_("e8m0"), tiny, "nearest-even") < 2.0**-127).all()


def test_float64_is_rounded_once_here_and_twice_in_ml_dtypes():
    """1.0625 is a tie of e4m3fn; a hair above it must go up, and does not if float32 swallows the hair first."""
    x = torch.tensor([1.0625 + 2.0**-40], dtype=torch.float64)
    assert format_("e4m3fn").round(x) == 1.125
    assert x.numpy().astype(ml_dtypes.float8_e4m3fn) == 1.0

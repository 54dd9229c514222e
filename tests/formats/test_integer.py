"""Integers and fixed point: against numpy, ml_dtypes, gfloat's MXINT8 element and exact arithmetic."""

import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat.formats import format_info_ocp_int8
from gfloat.round_ndarray import round_ndarray
from tests.references import round_integer
from tests.witnesses import GFLOAT_MODES, every_half, first_difference, random_float32

from narrowcast.errors import InputError
from narrowcast.formats import Integer, formats, rounding
from narrowcast.formats import format as format_

INPUTS = torch.cat([*every_half().values(), random_float32(1 << 16)])
INTEGERS = [f for f in formats().values() if isinstance(f, Integer)]
MODES = ["nearest-even", "nearest-away", "nearest-zero", "toward-zero", "up", "down", "odd"]


@pytest.mark.parametrize("fmt", INTEGERS, ids=str)
def test_nearest_even_is_numpy_rint_clipped(fmt):
    x = INPUTS
    scaled = x.double().numpy() * 2.0**fmt.fraction
    expected = np.clip(np.rint(scaled), fmt.low, fmt.high) / 2.0**fmt.fraction + 0.0
    assert not first_difference(fmt.round(x), expected, x)
    expected = np.nan_to_num(expected, nan=0.0)
    assert not first_difference(fmt.decode(fmt.encode(x)), expected, x)


@pytest.mark.parametrize("fmt", INTEGERS, ids=str)
def test_float64_near_ties_against_exact_arithmetic(fmt):
    points = [0.5, 1.0, 1.5, 2.5, 3.0, fmt.high - 0.5, fmt.high, fmt.high + 0.5, -fmt.low - 0.5, -fmt.low + 0.5]
    inputs = [sign * p * (1 + hair * 2.0**-45) for p in points for hair in (-1, 0, 1) for sign in (1, -1)]
    inputs = [v / 2.0**fmt.fraction for v in inputs]
    inputs += [0.0, -0.0, 5e-324, -5e-324, 1e300, -1e300, torch.inf, -torch.inf, torch.nan]
    x = torch.tensor(inputs, dtype=torch.float64)
    for mode in MODES:
        expected = [round_integer(fmt, v, mode) for v in inputs]
        assert not first_difference(fmt.round(x, rounding(mode)), expected, x), mode


@pytest.mark.parametrize("mode", GFLOAT_MODES)
def test_mxint8_element_rounds_as_in_gfloat(mode):
    """gfloat's OCP int8 also uses -2, the code that we leave out, as the specification advises."""
    x = INPUTS[INPUTS.abs() < 1.98]
    expected = round_ndarray(format_info_ocp_int8, x.double().numpy(), GFLOAT_MODES[mode], sat=True)
    assert not first_difference(format_("q1.6").round(x, rounding(mode)), expected, x)
    assert format_("q1.6").round(torch.tensor(-3.0)) == -127 / 64
    assert round_ndarray(format_info_ocp_int8, np.array([-3.0]), GFLOAT_MODES[mode], sat=True) == -2


@pytest.mark.parametrize(
    "name", ["int1", "int2", "int4", "uint1", "uint2", "uint4", "int8", "uint8", "int16", "uint16"]
)
def test_every_code_decodes_as_in_ml_dtypes_and_numpy(name):
    kind = np.dtype(getattr(ml_dtypes, name, None) or name)
    fmt = format_(name if name.startswith("uint") else f"{name}_full")
    codes = fmt.codes()
    unsigned = np.uint16 if kind.itemsize == 2 else np.uint8
    expected = codes.numpy().astype(unsigned).view(kind).astype(np.float32)
    assert not first_difference(fmt.decode(codes), expected, codes)


@pytest.mark.parametrize(
    ("name", "low", "high", "step"),
    [
        ("int8", -127, 127, 1),
        ("int8_full", -128, 127, 1),
        ("int4", -7, 7, 1),
        ("int4_full", -8, 7, 1),
        ("uint4", 0, 15, 1),
        ("int2", -1, 1, 1),
        ("int1_full", -1, 0, 1),
        ("uint1", 0, 1, 1),
        ("int16", -32767, 32767, 1),
        ("uint16", 0, 65535, 1),
        ("q1.6", -127 / 64, 127 / 64, 1 / 64),
    ],
)
def test_ranges(name, low, high, step):
    values = format_(name).values()
    assert (values[0], values[-1]) == (low, high)
    assert (values.diff() == step).all()
    assert format_(name).smallest == format_(name).smallest_normal == step
    assert format_(name).round(torch.tensor([-1e9, 1e9])).tolist() == [low, high]


def test_two_s_complement_codes():
    assert format_("int4").encode(torch.tensor([-7.0, -1.0, -0.0, 0.0, 7.0])).tolist() == [9, 15, 0, 0, 7]
    assert format_("int4_full").encode(torch.tensor(-8.0)) == 8
    assert format_("int4").encode(torch.tensor(-8.0)) == 9  # symmetric: code 8 is never written
    assert format_("int4").decode(torch.tensor(8)) == -8  # but has a value


@pytest.mark.parametrize(
    ("width", "fields", "said"),
    [
        (0, {}, "1 to 16 bits"),
        (17, {}, "1 to 16 bits"),
        (1, {}, "only zero"),
        (8, {"fraction": -1}, "0 to 100 fractional"),
        (8, {"fraction": 101}, "0 to 100 fractional"),
    ],
)
def test_impossible_definitions_are_refused(width, fields, said):
    with pytest.raises(InputError, match=said):
        Integer("impossible", width, **fields)

"""Published vectors of ONNX and value tables of Stillwater Universal, where their conventions are ours."""

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.onnx_vectors import case
from tests.witnesses import first_difference

from narrowcast.formats import Bottom, Integer, Minifloat, rounding
from narrowcast.formats import format as format_

FOLDER = Path(os.environ.get("NARROWCAST_DATA", "")) / "golden-formats"
pytestmark = pytest.mark.skipif(
    not os.environ.get("NARROWCAST_DATA") or not FOLDER.is_dir(),
    reason="NARROWCAST_DATA does not name a folder with golden-formats (ONNX and Universal vectors, not redistributed)",
)
ONNX = FOLDER / "onnx_node_vectors.zip"
ONNX_NAMES = {
    "FLOAT8E4M3FN": "e4m3fn", "FLOAT8E4M3FNUZ": "e4m3fnuz", "FLOAT8E5M2": "e5m2", "FLOAT8E5M2FNUZ": "e5m2fnuz",
    "FLOAT4E2M1": "e2m1fn", "BFLOAT16": "bfloat16", "FLOAT16": "float16",
}  # fmt: skip


@pytest.mark.parametrize("name", ONNX_NAMES)
def test_onnx_cast_from_float(name):
    (x,), codes = case(ONNX, f"test_cast_FLOAT_to_{name}")
    fmt = format_(ONNX_NAMES[name])
    x, found = torch.from_numpy(x.copy()), fmt.encode(torch.from_numpy(x.copy()))
    expected = torch.from_numpy(codes.view(np.uint16).astype(np.int32) if codes.itemsize == 2 else codes.copy())
    number = ~x.isnan()
    assert torch.equal(found[number].int(), expected[number].int())
    if fmt.nan_code is not None:  # without one, ONNX writes the code of -0 (as ml_dtypes does), we that of +0
        assert torch.equal(fmt.decode(found).isnan(), x.isnan())


@pytest.mark.parametrize("name", [n for n in ONNX_NAMES if not n.endswith("16")])
def test_onnx_cast_to_float(name):
    (codes,), expected = case(ONNX, f"test_cast_{name}_to_FLOAT")
    found = format_(ONNX_NAMES[name]).decode(torch.from_numpy(codes.copy()))
    assert not first_difference(found, expected, codes)


def test_onnx_e8m0_to_float():
    (codes,), expected = case(ONNX, "test_cast_e8m0_FLOAT8E8M0_to_FLOAT")
    assert not first_difference(format_("e8m0").decode(torch.from_numpy(codes.copy())), expected, codes)


def test_onnx_e8m0_from_float_rounds_up_and_has_a_code_for_zero():
    """ONNX's default there is the next power of two, and 2^-127 for 0; rounding up is our mode "up", 0 is NaN."""
    (x,), codes = case(ONNX, "test_cast_e8m0_FLOAT_to_FLOAT8E8M0")
    x = torch.from_numpy(x.copy())
    found = format_("e8m0").encode(x, rounding("up"))
    zero = x == 0
    assert torch.equal(found[~zero], torch.from_numpy(codes.copy())[~zero])
    assert (found[zero] == 255).all()
    assert (codes[zero.numpy()] == 0).all()


@pytest.mark.parametrize(
    ("name", "ours"), [("INT4", "int4_full"), ("UINT4", "uint4"), ("INT2", "int2_full"), ("UINT2", "uint2")]
)
def test_onnx_integers_both_ways(name, ours):
    """ONNX's float-to-int cast truncates, and wraps what is out of range: only the rest can be compared."""
    fmt = format_(ours)
    (codes,), expected = case(ONNX, f"test_cast_{name}_to_FLOAT")
    assert not first_difference(fmt.decode(torch.from_numpy(codes.copy())), expected, codes)
    (x,), codes = case(ONNX, f"test_cast_FLOAT_to_{name}")
    x = torch.from_numpy(x.copy())
    inside = (x >= fmt.low) & (x <= fmt.high)
    assert inside.any()
    found = fmt.encode(x, rounding("toward-zero"))
    assert torch.equal(found[inside], torch.from_numpy(codes.copy())[inside])


@pytest.mark.parametrize(("name", "ours"), [("e4m3fn", "e4m3fn"), ("e5m2", "e5m2"), ("float4e2m1", "e2m1fn")])
def test_onnx_quantize_linear(name, ours):
    (x, scale, *zero), codes = case(ONNX, f"test_quantizelinear_{name}")
    assert not any(z.any() for z in zero)
    scale = scale.reshape(-1, *[1] * (x.ndim - 1)) if scale.size > 1 else scale
    found = format_(ours).encode(torch.from_numpy(x / scale + 0.0))  # adding the zero point 0 makes -0 positive
    assert torch.equal(found, torch.from_numpy(codes.copy()))


@pytest.mark.parametrize(
    ("name", "ours"), [("int2", "int2_full"), ("int4", "int4_full"), ("uint2", "uint2"), ("uint4", "uint4")]
)
def test_onnx_dequantize_linear(name, ours):
    (codes, scale, zero), expected = case(ONNX, f"test_dequantizelinear_{name}")
    fmt = format_(ours)
    value, offset = (fmt.decode(torch.from_numpy(c.copy())).numpy() for c in (codes, zero))
    shape = [-1 if scale.size > 1 and n == scale.size else 1 for n in codes.shape]
    found = (value - offset.reshape(shape)) * scale.reshape(shape)
    assert not first_difference(found, expected, codes)


def universal_tables(file: str):
    """Yield (parameters in the heading, rows) of every table of a Universal csv."""
    heading, rows = None, []
    for line in (FOLDER / file).read_text().splitlines():
        if "ookup table for a" in line:
            heading, rows = [int(n) for n in re.findall(r"\d+", line.partition("<")[2])[:2]], []
        elif re.match(r"\d+,", line):
            rows.append(next(csv.reader([line])))
        elif not line.strip() and heading:
            yield heading, rows
            heading = None
    if heading:
        yield heading, rows


def test_universal_fixed_point_tables():
    tables = 0
    for (width, fraction), rows in universal_tables("universal_fixpnts.csv"):
        fmt = Integer("fixpnt", width, symmetric=False, fraction=fraction)
        assert [int(row[0]) for row in rows] == fmt.codes().tolist()
        assert not first_difference(fmt.decode(fmt.codes()), [float(row[-1]) for row in rows], fmt.codes())
        tables += 1
    assert tables == 27


def test_universal_classic_floats_without_subnormals():
    """Universal puts infinity and NaN elsewhere in the top binade; every finite number is the same."""
    tables = 0
    for (width, exponent), rows in universal_tables("universal_cfloat_fff.csv"):
        mantissa = width - 1 - exponent
        fmt = Minifloat("cfloat", exponent, mantissa, (1 << (exponent - 1)) - 1, bottom=Bottom.ZERO)
        values = [(int(row[0]), float(row[-1])) for row in rows if "n" not in row[-1]]
        codes = torch.tensor([code for code, _ in values])
        expected = [value + 0.0 for _, value in values]  # it prints -0 for 0
        found = [float(f"{v:.6g}") + 0.0 for v in fmt.decode(codes).tolist()]  # and six digits
        assert not first_difference(found, expected, codes)
        assert len(values) == (1 << width) - (2 << mantissa)
        tables += 1
    assert tables == 15

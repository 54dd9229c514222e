"""The inputs of a conformance run: all of bfloat16 and float16, and each tie of the format, found without being told where."""

import numpy as np
import pytest
import torch
from tests.witnesses import ML_DTYPES, every_half

import narrowcast as nc
from narrowcast.formats import rounding
from narrowcast.testing.inputs import CLASSES, bits_of, classify, grid, inputs


def present(x: torch.Tensor, wanted: np.ndarray) -> bool:
    return bool(np.isin(wanted.astype(np.float32).view(np.uint32), bits_of(x).numpy()).all())


@pytest.mark.parametrize("name", ["e4m3fn", "e2m1fn", "e5m2", "e4m3fnuz"])
def test_every_value_tie_and_neighbour_is_tried(name) -> None:
    x = inputs(nc.format(name))
    width = np.dtype(ML_DTYPES[name]).itemsize
    with np.errstate(invalid="ignore"):
        values = np.arange(1 << 8 * width).astype(f"u{width}").view(ML_DTYPES[name]).astype(np.float64)
    values = np.unique(values[np.isfinite(values)])
    ties = ((values[1:] + values[:-1]) / 2).astype(np.float32)
    for points in (values.astype(np.float32), ties, np.nextafter(ties, np.inf), np.nextafter(ties, -np.inf)):
        assert present(x, points)
    assert present(x, np.array([-0.0, np.inf, -np.inf]))


def test_every_half_is_tried_once() -> None:
    bits = bits_of(inputs(nc.format("e4m3fn")))
    assert len(bits.unique()) == len(bits)
    for half in every_half().values():
        assert torch.isin(bits_of(half[~half.isnan()]), bits).all()


def test_only_what_the_dtype_holds_is_tried() -> None:
    x = inputs(nc.format("e4m3fn"), dtype=torch.bfloat16)
    assert len(x) == 1 << 16 or len(x) > (1 << 16) - 8  # NaNs whose payload bfloat16 lacks count among the rest
    assert torch.equal(x[~x.isnan()], x.bfloat16().float()[~x.isnan()])


def test_wide_formats_are_sampled() -> None:
    tf32 = nc.format("tf32")
    values = grid(tf32)
    assert torch.equal(tf32.round(values), values)
    assert len(values) > 30000
    assert int((classify(inputs(tf32), tf32) == CLASSES.index("tie")).sum()) > 30000


@pytest.mark.parametrize(
    ("x", "name"),
    [
        (float("nan"), "NaN"),
        (float("-inf"), "infinity"),
        (-0.0, "zero"),
        (448.0, "value of a code"),
        (2.0**-9, "value of a code"),
        (1.0625, "tie"),
        (2.0**-10, "tie"),
        (465.0, "beyond the maximum"),
        (1.0625 + 2**-23, "beside a threshold"),
        (2.0**-30, "below the smallest"),
        (2.0**-7 * 1.01, "subnormal"),
        (1.01, "other"),
    ],
)
def test_classes(x, name) -> None:
    assert CLASSES[int(classify(torch.tensor([x]), nc.format("e4m3fn")))] == name


def test_thresholds_follow_the_rounding() -> None:
    just_below = torch.tensor([np.nextafter(np.float32(1.125), np.float32(0))])
    e4m3fn = nc.format("e4m3fn")
    assert CLASSES[int(classify(just_below, e4m3fn, rounding("toward-zero")))] == "beside a threshold"
    assert CLASSES[int(classify(just_below, e4m3fn))] == "other"

"""`conform` as its users meet it: our own definitions pass, other libraries are named fairly, bad input is one line."""

import warnings

import ml_dtypes
import numpy as np
import pytest
import torch

import narrowcast as nc
from narrowcast.errors import InputError
from narrowcast.testing import conform
from narrowcast.testing.scaler import scale_format, scaler

CASTS = [
    "mxfp8_e4m3", "mxint8", "mxfp6_e2m3", "nvfp4", "int4/1x32/fp32", "e4m3fn/128x128/fp32", "e4m3fn/row/fp32",
    "e4m3fn/tensor/fp32", "e2m1fn/1x16/e4m3fn", "e2m1fn/1x32/e8m0-four-thirds/toward-zero", "e2m1fn/16x16/e4m3fn+fp32",
]  # fmt: skip


@pytest.mark.parametrize(
    "name", ["e4m3fn", "e2m1fn", "q1.6", "int4_full", "e8m0", "e5m2fnuz", "tf32", "hif8", "posit8_1", "nf4"]
)
def test_every_format_conforms_to_itself(name) -> None:
    fmt = nc.format(name)
    report = conform(fmt.encode, fmt.decode, format=name)
    assert report.conforms, str(report)
    assert conform(fmt.round, format=fmt).conforms


@pytest.mark.parametrize("mode", [m for m in nc.roundings() if not m.startswith("stochastic")])
def test_every_deterministic_rounding_conforms_to_itself(mode) -> None:
    assert conform(lambda x: nc.round(x, "e4m3fn", mode), format="e4m3fn", rounding=mode).conforms


@pytest.mark.parametrize("spelling", CASTS)
def test_every_cast_conforms_to_itself(spelling) -> None:
    cast = nc.cast(spelling)

    def encode(x):
        q = cast.quantize(x)
        return (q.codes, q.scales) if q.tensor_scale is None else (q.codes, q.scales, q.tensor_scale)

    report = conform(encode, format=spelling)
    assert report.conforms, str(report)
    assert conform(cast.apply, format=cast).conforms


def test_a_scaler_is_its_cast() -> None:
    cast, x = nc.cast("nvfp4"), torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    outcome = scaler(cast).outcome(x, scale_format(cast.scale))
    assert torch.equal(outcome.dequantized, cast.apply(x))


def numpy_float8(kind):
    def encode(x):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return x.astype(kind)

    return encode


@pytest.mark.parametrize(
    ("kind", "asked", "names"),
    [
        (ml_dtypes.float8_e4m3fn, "e4m3fn", ["overflow becomes NaN", "infinity becomes NaN"]),
        (ml_dtypes.float8_e5m2, "e5m2", ["overflow becomes infinity", "infinity kept"]),
        (ml_dtypes.float8_e4m3, "e4m3fn", ["format e4m3", "overflow becomes infinity", "infinity kept"]),
    ],
)
def test_ml_dtypes_differs_where_its_documentation_says(kind, asked, names) -> None:
    (finding,) = conform(numpy_float8(kind), lambda c: c.astype(np.float32), format=asked).findings[:1]
    assert sorted(reason.name for reason in finding.reasons) == sorted(names)
    assert finding.unexplained == 0


def test_torch_s_bfloat16_conforms() -> None:
    assert conform(lambda x: x.to(torch.bfloat16), format="bfloat16").conforms


def test_the_report_is_plain_data() -> None:
    report = conform(lambda x: x.round().clamp(-127, 127), format="int8").as_dict()
    assert report["conforms"] is True
    assert report["asked"] == "int8, nearest-even"
    (finding,) = report["findings"]
    assert finding["kind"] == "values"
    assert finding["differ"] == 0
    assert {"name": "tie", "count": 254, "agree": 254, "first": None} in finding["tallies"]


def _fails(x):
    raise ValueError("only on a GPU")


E4M3 = nc.format("e4m3fn")
BAD = [
    ({"encode": _fails}, "encode failed on torch arrays (float32 [8, 64]): ValueError: only on a GPU"),
    ({"encode": 3}, "encode is of type int, expected a function"),
    ({"encode": lambda x: x.flatten()}, "returned values of shape [123776], expected [1934, 64]"),
    ({"encode": lambda x: E4M3.encode(x)[:, :32]}, "returned codes of shape [1934, 32], expected [1934, 64]"),
    ({"encode": lambda x: x > 0}, "returned torch.bool, expected integer codes or float values"),
    ({"encode": lambda x: x.numpy().astype(str), "arrays": "torch"}, "expected integer codes or float values"),
    ({"encode": lambda x: E4M3.encode(x).int() + 200}, "expected 0 to 255 for the 8 bits of e4m3fn"),
    ({"encode": lambda x: nc.format("e2m1fn").encode(x) << 4, "format": "e2m1fn"}, "shift them down"),
    ({"encode": lambda x: (E4M3.encode(x), x)}, "returned 2 arrays, expected one"),
    ({"encode": lambda x: E4M3.encode(x), "kind": "code"}, "unknown kind 'code'"),
    ({"encode": lambda x: E4M3.encode(x), "format": "mxfp8"}, "returned codes without scales"),
    (
        {"encode": lambda x: (E4M3.encode(x), x[:, :1]), "format": "mxfp8"},
        "returned 1024 scales [1024, 1], expected 4096",
    ),
    ({"encode": lambda x: (E4M3.encode(x), x, x), "format": "mxfp8"}, "returned 3 arrays, expected at most 2"),
    ({"encode": lambda x: x, "format": "mxfp8", "kind": "codes+scales"}, "which is kind dequantized"),
    ({"encode": lambda x: x, "rounding": "stochastic"}, "draws random bits"),
    ({"encode": lambda x: x, "scale_rule": "e8m0"}, "needs a tile, e.g. 1x32 too"),
    ({"encode": lambda x: x, "tile": "1x32"}, "needs a scale rule, e.g. e8m0 too"),
    ({"encode": lambda x: x, "format": "e4m3fn/tensor/fp32-delayed4"}, "histories"),
    ({"encode": lambda x: x, "format": "mxfp8/1x32"}, "mxfp8"),
    ({"encode": lambda x: x, "dtype": "float64"}, "unknown dtype 'float64'"),
    ({"encode": lambda x: x, "arrays": "jax"}, "unknown arrays 'jax'; known: torch, numpy"),
    ({"encode": None}, "nothing to check"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_input_is_one_line(given, message) -> None:
    with pytest.raises(InputError) as caught:
        conform(**{"format": "e4m3fn", **given})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

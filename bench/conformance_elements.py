"""How each library of element formats is called for `bench/conformance.py`: one row per encoder.

A row asks for the format that the library's own documentation names. What that documentation rules out as input (NaN,
say) is left out and listed. Libraries are imported inside the functions here; one that is missing is left out by name.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from bench.conformance_row import Row, row
from torch import Tensor

import narrowcast as nc
from narrowcast.formats import Integer


def torch_casts() -> Iterator[Row]:
    """Tensor.to, eager, on a CPU."""
    names = {
        "e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e4m3fnuz": torch.float8_e4m3fnuz,
        "e5m2fnuz": torch.float8_e5m2fnuz, "e8m0": torch.float8_e8m0fnu,
    }  # fmt: skip
    for name, kind in names.items():
        yield row("x.to(dtype)", lambda x, kind=kind: x.to(kind), lambda c: c.float(), format=name)
    for name, kind in {"bfloat16": torch.bfloat16, "float16": torch.float16}.items():
        yield row("x.to(dtype)", lambda x, kind=kind: x.to(kind), format=name)


def ml_dtypes() -> Iterator[Row]:
    """NumPy's astype with the types of ml_dtypes."""
    import ml_dtypes as peer

    names = {
        "e5m2": "float8_e5m2", "e4m3fn": "float8_e4m3fn", "e4m3": "float8_e4m3", "e3m4": "float8_e3m4",
        "e5m2fnuz": "float8_e5m2fnuz", "e4m3fnuz": "float8_e4m3fnuz", "e4m3b11fnuz": "float8_e4m3b11fnuz",
        "e3m2fn": "float6_e3m2fn", "e2m3fn": "float6_e2m3fn", "e2m1fn": "float4_e2m1fn", "e8m0": "float8_e8m0fnu",
    }  # fmt: skip
    for name, kind in names.items():
        yield _astype(getattr(peer, kind), name)
    yield row("x.astype(type)", lambda x: x.astype(peer.bfloat16), format="bfloat16", arrays="numpy")
    for name in ("int2", "int4", "uint2", "uint4"):
        yield _astype(getattr(peer, name), name, rounding="toward-zero")


def en_dtypes() -> Iterator[Row]:
    """NumPy's astype with the types of en_dtypes."""
    import en_dtypes as peer

    names = {
        "e2m1fn": peer.float4_e2m1, "e1m2fn": peer.float4_e1m2, "e2m3fn": peer.float6_e2m3, "e3m2fn": peer.float6_e3m2,
        "e8m0": peer.float8_e8m0, "hif8": peer.hifloat8,
    }  # fmt: skip
    for name, kind in names.items():
        yield _astype(kind, name, rounding="nearest-away" if name == "hif8" else "nearest-even")  # after its paper


def _astype(kind: Any, name: str, **asked: Any) -> Row:
    back = lambda c: c.astype(np.float32)  # noqa: E731
    return row("x.astype(type)", lambda x: x.astype(kind), back, format=name, arrays="numpy", **asked)


def gfloat() -> Iterator[Row]:
    """round_ndarray in float64, saturating where the format does; and a round trip through codes."""
    import gfloat.formats as infos
    from gfloat import RoundMode, decode_ndarray, encode_ndarray, round_ndarray

    names = {
        "e5m2": infos.format_info_ocp_e5m2, "e4m3fn": infos.format_info_ocp_e4m3, "e3m2fn": infos.format_info_ocp_e3m2,
        "e2m3fn": infos.format_info_ocp_e2m3, "e2m1fn": infos.format_info_ocp_e2m1, "q1.6": infos.format_info_ocp_int8,
        "bfloat16": infos.format_info_bfloat16, "float16": infos.format_info_binary16,
        **{f"binary8p{p}se": infos.format_info_p3109(8, p) for p in (3, 4, 5)},
        "e8m0": infos.format_info_ocp_e8m0,
    }  # fmt: skip
    modes = {
        "nearest-even": "TiesToEven", "nearest-away": "TiesToAway", "toward-zero": "TowardZero",
        "up": "TowardPositive", "down": "TowardNegative",
    }  # fmt: skip
    for name, info in names.items():
        asked: dict[str, Any] = {"format": name, "arrays": "numpy"}
        if name == "e8m0":
            asked["leave_out"] = ("negative", "zero")  # round_ndarray knows no format without a zero and a sign
        for mode, theirs in modes.items():

            def rounded(x: Any, info: Any = info, mode: Any = RoundMode[theirs], name: str = name) -> Any:
                return round_ndarray(info, x.astype(np.float64), mode, name not in ("bfloat16", "float16"))

            yield row("round_ndarray", rounded, rounding=mode, **asked)
            if mode == "nearest-even" and name != "e8m0":
                refused = () if nc.format(name).round(torch.tensor([np.nan])).isnan() and _has_nan(name) else ("NaN",)
                yield row(
                    "encode_ndarray(round_ndarray)",
                    lambda x, info=info, rounded=rounded: encode_ndarray(info, rounded(x)),
                    lambda c, info=info: decode_ndarray(info, c),
                    **{**asked, "leave_out": refused},
                )


def _has_nan(name: str) -> bool:
    fmt = nc.format(name)
    return bool(fmt.decode(fmt.codes()).isnan().any())


def pychop() -> Iterator[Row]:
    """Chop: formats with infinity and NaN in the top exponent, as IEEE 754 has them; Chopf; mx_quantize; P3109."""
    import pychop as peer

    peer.backend("numpy")
    modes = {1: "nearest-even", 2: "up", 3: "down", 4: "toward-zero", 7: "nearest-zero", 8: "nearest-away", 9: "odd"}
    for fields in ((4, 3), (5, 2), (3, 2), (2, 1), (8, 7), (5, 10)):
        exponent, mantissa = fields
        fmt = {(8, 7): "bfloat16", (5, 10): "float16"}.get(fields, f"e{exponent}m{mantissa}_ieee_open")
        for number, mode in modes.items():
            chop = peer.Chop(exp_bits=exponent, sig_bits=mantissa, rmode=number)
            yield row("Chop", lambda x, chop=chop: chop(x), format=fmt, rounding=mode, arrays="numpy")
    for number, mode in list(modes.items())[:4]:
        fixed = peer.Chopf(ibits=4, fbits=4, rmode=number)
        fmt = Integer("q4.4", 8, symmetric=False, fraction=4)
        yield row("Chopf", lambda x, fixed=fixed: fixed(x), format=fmt, rounding=mode, arrays="numpy")
    for kind in ("mxfp4_e2m1", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2", "mxint8"):
        preset = kind.removesuffix("_e2m1")
        yield row("mx_quantize", lambda x, kind=kind: peer.mx_quantize(x, kind), format=preset, arrays="numpy")
    for precision in (3, 4, 5):
        fmt = peer.P3109Format(8, precision)
        yield row(
            "p3109_encode",
            lambda x, fmt=fmt: peer.p3109_encode(x, fmt, saturate=True),
            lambda c, fmt=fmt: peer.p3109_decode(c, fmt),
            format=f"binary8p{precision}se",
            arrays="numpy",
        )


def qtorch() -> Iterator[Row]:
    """float_quantize and fixed_point_quantize, nearest; its floats give the top exponent to numbers."""
    from qtorch.quant import fixed_point_quantize, float_quantize

    for exponent, mantissa in ((4, 3), (5, 2), (3, 2), (2, 1), (8, 7), (5, 10)):
        fmt = "bfloat16" if exponent == 8 else f"e{exponent}m{mantissa}_none"

        def rounded(x: Tensor, exponent: int = exponent, mantissa: int = mantissa) -> Tensor:
            return float_quantize(x, exponent, mantissa, "nearest")

        yield row("float_quantize", rounded, format=fmt)
    for fraction in (0, 4, 6):
        fmt = Integer(f"q{8 - fraction}.{fraction}", 8, symmetric=False, fraction=fraction)

        def fixed(x: Tensor, fraction: int = fraction) -> Tensor:
            return fixed_point_quantize(x, 8, fraction, rounding="nearest")

        yield row("fixed_point_quantize", fixed, format=fmt)

"""Adapters to the number-format libraries that narrowcast is checked against: ml_dtypes and gfloat."""

import warnings

import ml_dtypes
import numpy as np
import torch
from gfloat import Domain, FormatInfo, RoundMode
from gfloat.encode_ndarray import encode_ndarray
from gfloat.round_ndarray import round_ndarray

ML_DTYPES = {
    "bfloat16": ml_dtypes.bfloat16,
    "float16": np.float16,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e4m3": ml_dtypes.float8_e4m3,
    "e3m4": ml_dtypes.float8_e3m4,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "e3m2fn": ml_dtypes.float6_e3m2fn,
    "e2m3fn": ml_dtypes.float6_e2m3fn,
    "e2m1fn": ml_dtypes.float4_e2m1fn,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}
GFLOAT_MODES = {
    "nearest-even": RoundMode.TiesToEven,
    "nearest-away": RoundMode.TiesToAway,
    "toward-zero": RoundMode.TowardZero,
    "up": RoundMode.TowardPositive,
    "down": RoundMode.TowardNegative,
}


def every_half() -> dict[str, torch.Tensor]:
    """All 65,536 bfloat16 and all 65,536 float16 inputs, as float32."""
    bits = np.arange(1 << 16, dtype=np.uint16)
    bfloat16 = (bits.astype(np.uint32) << 16).view(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy warns when it widens a signalling NaN
        float16 = bits.view(np.float16).astype(np.float32)
    return {"bfloat16": torch.from_numpy(bfloat16), "float16": torch.from_numpy(float16)}


def random_float32(count: int, seed: int = 0) -> torch.Tensor:
    """Uniform random float32 *patterns*: every exponent, subnormals, infinities and NaNs included."""
    bits = np.random.default_rng(seed).integers(0, 1 << 32, count, dtype=np.uint32)
    corners = np.array([0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000], dtype=np.uint32)
    return torch.from_numpy(np.concatenate([bits, corners, corners | 0x80000000]).view(np.float32))


def ml_dtypes_cast(name: str, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return (codes, values) of ml_dtypes' cast of float32 ``x``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid value, overflow: the very cases wanted
        narrow = x.numpy().astype(ML_DTYPES[name])
        values = narrow.astype(np.float32)
    unsigned = np.uint8 if narrow.itemsize == 1 else np.uint16
    return narrow.view(unsigned).astype(np.int64), values


def ml_dtypes_decode(name: str, codes: torch.Tensor) -> np.ndarray:
    """Return the float32 values of ``codes`` according to ml_dtypes."""
    unsigned = np.uint8 if np.dtype(ML_DTYPES[name]).itemsize == 1 else np.uint16
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return codes.numpy().astype(unsigned).view(ML_DTYPES[name]).astype(np.float32)


def gfloat_info(fmt) -> FormatInfo:
    """The gfloat description of a narrowcast minifloat."""
    reserved = {"ieee": 2**fmt.mantissa - 1, "fn": 1, "fnuz": 0, "none": 0, "p3109": 0 if fmt.signed else 1}
    return FormatInfo(
        fmt.name,
        fmt.bits,
        fmt.mantissa + 1,
        bias=fmt.bias,
        is_signed=fmt.signed,
        domain=Domain.Extended if fmt.specials.value in ("ieee", "p3109") else Domain.Finite,
        has_nz=fmt.signed and fmt.specials.value not in ("fnuz", "p3109"),
        num_high_nans=reserved[fmt.specials.value],
        has_subnormals=fmt.bottom.value == "subnormal",
        is_twos_complement=False,
    )


def gfloat_round(fmt, x: torch.Tensor, mode: str) -> np.ndarray:
    """Return the float64 values of gfloat's rounding of ``x`` to ``fmt``, saturating if ``fmt`` does."""
    saturate = fmt.saturate or fmt.specials.value == "none"
    with np.errstate(all="ignore"):
        return round_ndarray(gfloat_info(fmt), x.double().numpy(), GFLOAT_MODES[mode], saturate)


def gfloat_encode(fmt, values: np.ndarray) -> np.ndarray:
    """Return gfloat's codes of NaN-free ``values``, which are already on the grid of ``fmt``."""
    return encode_ndarray(gfloat_info(fmt), values).astype(np.int64)


def first_difference(found, expected, inputs) -> str:
    """Return '' if two arrays hold the same values (NaN equal to NaN, -0 unequal to 0), or the first that differ."""
    with np.errstate(invalid="ignore"):  # numpy warns when it widens a signalling NaN
        found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    same = (found == expected) & (np.signbit(found) == np.signbit(expected))
    wrong = np.flatnonzero(~(same | (np.isnan(found) & np.isnan(expected))))
    if not wrong.size:
        return ""
    i = wrong[0]
    x = float(np.asarray(inputs, dtype=np.float64).reshape(-1)[i])
    where = f"{wrong.size} differ, the first at {x!r} ({x.hex()})"
    return f"{where}: found {found.flat[i]!r}, expected {expected.flat[i]!r}"

"""Every bug that is planted in a small copy of an encoder is caught and named, and nothing else is."""

import ml_dtypes
import numpy as np
import pytest
import torch
from tests.testing import planted
from tests.testing.planted import E2M1FN, E4M3, E4M3FN, E5M2, encode, pack

from narrowcast.testing import Report, conform

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, of NaN turned into an integer


def named(report: Report) -> list[str]:
    """What the report says is the matter with the last function; it must account for every answer that differs."""
    finding = report.findings[-1]
    assert finding.first is not None
    assert finding.unexplained == 0, str(report)
    return [reason.name for reason in finding.reasons]


def e5m2(x):
    return np.where(np.isnan(x), 0x7F, encode(x, E5M2))


def flushed(x):
    codes = encode(x)
    return np.where(codes & 0x7F < 8, codes & 0x80, codes)


def past(x, limit, code, codes):
    """``code`` with the sign of x where abs(x) is above ``limit`` (infinities too)."""
    return np.where(np.abs(x) > limit, code | np.signbit(x) << 7, codes)


def int8(x, whole):
    return whole(np.nan_to_num(x, nan=0.0)).clip(-127, 127).astype(np.int8)


def bfloat16_cut(x):
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def bfloat16_added(x):
    bits = x.view(np.uint32).astype(np.uint64)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)


def as_values(x, kind, limit=np.inf):
    return np.clip(x, -limit, limit).astype(kind).astype(np.float32)


SINGLE = [
    ("e4m3fn", lambda x: encode(x, turn=planted.to_away), ["ties away from zero"]),
    ("e4m3fn", lambda x: encode(x, turn=planted.to_zero), ["ties to zero"]),
    ("e2m1fn", lambda x: encode(x, E2M1FN, planted.truncated), ["truncation"]),
    ("e4m3fn", flushed, ["subnormals flushed to zero"]),
    ("e4m3fn", lambda x: encode(np.where(np.abs(x) < 2**-6, x * 0, x)), ["subnormals flushed to zero before rounding"]),
    ("e5m2", lambda x: past(x, 61439.9961, 0x7C, e5m2(x)), ["overflow becomes infinity", "infinity kept"]),
    ("e4m3fn", lambda x: past(x, 464, 0x7F, encode(x)), ["overflow becomes NaN", "infinity becomes NaN"]),
    ("e4m3fn", lambda x: np.where(np.isinf(x), 0x7F, encode(x)), ["infinity becomes NaN"]),
    ("e4m3_open", lambda x: np.where(np.isnan(x), 0x7F, encode(x, E4M3)), ["overflow saturates", "infinity saturates"]),
    ("e4m3fn", lambda x: encode(x) * (encode(x) != 0x80), ["sign of zero dropped"]),
    ("e4m3fn", lambda x: encode(np.where(x == 0, 0, x)), ["sign of a zero input dropped"]),
    ("e4m3fn", lambda x: np.where(np.isnan(x), 0x7E, encode(x)), ["NaN lost: it becomes the maximum"]),
    ("e4m3fn", lambda x: np.where(np.isnan(x), 0, encode(x)), ["NaN lost: it becomes zero"]),
    ("e4m3fn", lambda x: encode(x.astype(np.float16)), ["double rounding: first rounded to float16"]),
    ("e4m3fn", lambda x: encode(x.astype(ml_dtypes.bfloat16)), ["double rounding: first rounded to bfloat16"]),
    ("e2m1fn", lambda x: pack(encode(x, E2M1FN), swap=True), ["swapped nibbles"]),
    ("e2m1fn", lambda x: pack(np.roll(encode(x, E2M1FN), 32, -1)), ["swapped halves of a row"]),
    ("e2m1fn", lambda x: encode(x, E2M1FN)[:, :32] | encode(x, E2M1FN)[:, 32:] << 4,
     ["swapped halves: the first half of a row in the low nibbles"]),
    ("bfloat16", lambda x: bfloat16_added(x).byteswap(),
     ["swapped bytes", "NaN lost: its bits are rounded like a number's, which may carry into the sign"]),
    ("int8", lambda x: int8(x, lambda x: np.trunc(x + np.float32(0.5) * np.sign(x))),
     ["one half added in float32, then truncation"]),
    ("int8", lambda x: int8(x, lambda x: np.floor(x + np.float32(0.5))), ["one half added in float32, then floor"]),
    ("int8", lambda x: np.rint(np.nan_to_num(x)).clip(-128, 127).astype(np.int8), ["format int8_full"]),
    ("int8", lambda x: np.rint(np.nan_to_num(x.clip(-9e18, 9e18), nan=0)).astype(np.int64).astype(np.int8),
     ["overflow wraps around", "infinity becomes zero"]),
    ("e4m3fn", lambda x: as_values(x, ml_dtypes.float8_e4m3, 240), ["format e4m3"]),
    ("e4m3fn", lambda x: as_values(x, ml_dtypes.float8_e4m3fnuz, 240), ["format e4m3fnuz"]),
    ("e4m3fn", lambda x: np.where(np.isnan(x), 0, past(x, 464, 0x7F, encode(x, turn=planted.to_zero))),
     ["overflow becomes NaN", "NaN lost: it becomes zero", "ties to zero", "infinity becomes NaN"]),
]  # fmt: skip


@pytest.mark.parametrize(("fmt", "function", "names"), SINGLE, ids=[" + ".join(row[2]) for row in SINGLE])
def test_a_planted_bug_is_named(fmt, function, names) -> None:
    report = conform(function, format=fmt)
    assert not report.conforms
    assert named(report) == names


@pytest.mark.parametrize(
    ("fmt", "fields"), [("e4m3fn", E4M3FN), ("e2m1fn", E2M1FN), ("e5m2", E5M2)], ids=["e4m3fn", "e2m1fn", "e5m2"]
)
def test_without_a_bug_the_copies_conform(fmt, fields) -> None:
    codes = e5m2 if fmt == "e5m2" else lambda x: encode(x, fields)
    report = conform(codes, lambda c: planted.decode(c, fields), format=fmt)
    assert report.conforms, str(report)
    assert [f.kind for f in report.findings] == ["codes", "decoded"]


def test_the_rounding_asked_for_is_the_standard_not_nearest_even() -> None:
    def truncating(x):
        return encode(x, turn=planted.truncated)

    assert conform(truncating, format="e4m3fn", rounding="toward-zero").conforms
    assert named(conform(encode, format="e4m3fn", rounding="toward-zero")) == ["ties to even"]
    assert named(conform(bfloat16_cut, format="bfloat16", rounding="toward-zero")) == [
        "NaN lost: its payload is cut off, which may leave infinity"
    ]


def test_the_first_difference_is_given_as_bits() -> None:
    report = conform(lambda x: encode(x, turn=planted.to_away), format="e4m3fn")
    (finding,) = report.findings
    first = finding.first
    assert (first.input, first.value, first.expected, first.found) == ("0x3a800000", 2.0**-10, "0x00", "0x01")
    assert first.input_class == "tie"
    assert (finding.differ, {t.name: t.count - t.agree for t in finding.tallies}["tie"]) == (126, 126)
    assert "it would agree in full under: ties away from zero" in str(report)


def test_what_no_rule_explains_is_said() -> None:
    report = conform(lambda x: np.where(x == 3.0, 0x11, encode(x)), format="e4m3fn")
    (finding,) = report.findings
    assert (finding.differ, finding.unexplained, finding.reasons) == (1, 1, ())
    assert "no rule tried explains 1 answers, the first 0x40400000 (3): expected 0x44, found 0x11" in str(report)


# --- decoders ---

DECODERS = [
    (lambda c: np.abs(planted.decode(c, E2M1FN)) * np.where(c > 8, -1.0, 1.0), ["sign of zero dropped"]),
    (lambda c: planted.decode(c, E2M1FN).reshape(-1, 32, 2)[:, :, ::-1].reshape(c.shape), ["swapped nibbles"]),
    (lambda c: np.where(c & 7 == 1, 0.0, planted.decode(c, E2M1FN)), ["subnormals flushed to zero", "sign of an underflow dropped"]),
]  # fmt: skip


@pytest.mark.parametrize(("function", "names"), DECODERS, ids=[" + ".join(names) for _, names in DECODERS])
def test_a_decoder_s_bug_is_named(function, names) -> None:
    assert named(conform(None, function, format="e2m1fn", arrays="numpy")) == names


def test_a_decoder_gets_codes_as_its_encoder_packs_them() -> None:
    seen = []

    def unpack(packed):
        seen.append(packed)
        codes = np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)
        return planted.decode(codes, E2M1FN)

    assert conform(lambda x: pack(encode(x, E2M1FN)), unpack, format="e2m1fn").conforms
    assert seen[-1].dtype == np.uint8
    torch_codes = conform(
        lambda x: x.clamp(-448, 448).to(torch.float8_e4m3fn), lambda c: c.to(torch.float32), format="e4m3fn"
    )
    assert torch_codes.conforms


# --- blocks ---


def mx(x, rule="floor", **options):
    return planted.blocks_of(x, planted.RULES[rule], **options)


def with_codes(change):
    def function(x):
        codes, scales = mx(x)
        return change(codes), scales

    return function


BLOCKS = [
    *(("mxfp4", lambda x, rule=rule: mx(x, rule), [f"e8m0 rule {rule}"]) for rule in planted.RULES if rule != "floor"),
    ("e2m1fn/1x32/e8m0-ceil", mx, ["e8m0 rule floor"]),
    ("mxfp4", with_codes(lambda codes: pack(codes, swap=True)), ["swapped nibbles"]),
    ("mxfp4", with_codes(lambda codes: codes.reshape(-1, 2, 16)[:, 0].reshape(len(codes), -1)
                         | codes.reshape(-1, 2, 16)[:, 1].reshape(len(codes), -1) << 4),
     ["swapped halves: the first half of a tile in the low nibbles"]),
    ("mxfp4", lambda x: (mx(x)[0], np.where(mx(x)[1] == 255, 255, 254 - mx(x)[1])), ["scales stored as their reciprocals"]),
    ("mxfp4", lambda x: mx(x, turn=planted.to_away), ["ties away from zero"]),
    ("mxfp4", lambda x: planted.dequantized(*mx(x, "even", turn=planted.to_zero)), ["e8m0 rule even", "ties to zero"]),
]  # fmt: skip


@pytest.mark.parametrize(("cast", "function", "names"), BLOCKS, ids=[" + ".join(row[2]) for row in BLOCKS])
def test_a_bug_in_a_block_format_is_named(cast, function, names) -> None:
    assert named(conform(function, format=cast)) == names


@pytest.mark.parametrize("rule", planted.RULES)
def test_the_block_copies_conform_to_their_own_rule(rule) -> None:
    report = conform(lambda x: mx(x, rule), format="e2m1fn", scale_rule=f"e8m0-{rule}", tile="1x32")
    assert report.conforms, str(report)


def test_a_block_decoder_is_checked_too() -> None:
    assert conform(mx, planted.dequantized, format="mxfp4").conforms
    names = named(conform(mx, lambda c, s: np.abs(planted.dequantized(c, s)) * np.where(c > 8, -1, 1), format="mxfp4"))
    assert names == ["sign of zero dropped"]

"""The minifloat family: published tables and thresholds, exact rounding from float64, bad definitions."""

import dataclasses
import itertools
import random
from fractions import Fraction

import pytest
import torch
from tests.references import goes_up, ladder_of, last_code, leaves_range, minifloat_magnitude, round_minifloat
from tests.witnesses import first_difference

from narrowcast.errors import InputError
from narrowcast.formats import Bottom, Minifloat, Specials, formats, rounding
from narrowcast.formats import format as format_

MODES = ["nearest-even", "nearest-away", "nearest-zero", "toward-zero", "up", "down", "odd"]
MINIFLOATS = [f for f in formats().values() if isinstance(f, Minifloat)]
# Family members that no catalogue row uses, but whose every edge the type offers.
UNUSUAL = [
    Minifloat("no_subnormals", 4, 3, 7, bottom=Bottom.ZERO),
    Minifloat("no_subnormals_finite", 2, 3, 1, Specials.NONE, Bottom.ZERO),
    Minifloat("all_normal", 3, 2, 3, Specials.FN, Bottom.NORMAL, signed=False),
    Minifloat("open_fn", 4, 3, 7, Specials.FN, saturate=False),
    Minifloat("open_ieee", 3, 1, 3, saturate=False),
    Minifloat("wide_bias", 4, 2, 20, Specials.FNUZ),
    Minifloat("one_exponent_bit", 1, 6, 0, Specials.NONE),
    Minifloat("top_of_float32", 7, 2, 0, Specials.NONE),
    Minifloat("top_of_float32_open", 7, 2, -1, Specials.IEEE, saturate=False),
    Minifloat("saturating_bfloat16", 8, 7, 127),
    Minifloat("unsigned_ieee", 3, 3, 3, signed=False, saturate=False),
    Minifloat("bias_120", 4, 3, 120),
    Minifloat("bias_128", 8, 5, 128, Specials.P3109, saturate=False),
    Minifloat("ten_and_more", 4, 11, 7),
]


def halves(start, stop, step):
    return [start + step * i for i in range(round((stop - start) / step))]


# The non-negative values of each, in code order: OCP OFP8 and MX v1.0; formats-reference, section 1.
TABLES = {
    "e2m1fn": [0, 0.5, 1, 1.5, 2, 3, 4, 6],
    "e3m0fn": [0, 0.25, 0.5, 1, 2, 4, 8, 16],
    "e1m2fn": [k / 2 for k in range(8)],
    "e2m3fn": [*halves(0, 2, 0.125), *halves(2, 4, 0.25), *halves(4, 8, 0.5)],
    "e3m2fn": [
        *halves(0, 0.5, 1 / 16),
        *halves(0.5, 1, 0.125),
        *halves(1, 2, 0.25),
        *halves(2, 4, 0.5),
        *halves(4, 8, 1),
        *halves(8, 16, 2),
        *halves(16, 32, 4),
    ],
}
# (format, bits, max, smallest normal, smallest, finite non-negative codes)
FACTS = [
    ("float32", 32, 3.4028234663852886e38, 2.0**-126, 2.0**-149, None),
    ("tf32", 19, (2 - 2.0**-10) * 2.0**127, 2.0**-126, 2.0**-136, None),
    ("bfloat16", 16, 3.3895313892515355e38, 2.0**-126, 2.0**-133, 0x7F80),
    ("float16", 16, 65504, 2.0**-14, 2.0**-24, 0x7C00),
    ("e5m2", 8, 57344, 2.0**-14, 2.0**-16, 124),
    ("e4m3fn", 8, 448, 2.0**-6, 2.0**-9, 127),
    ("e4m3", 8, 240, 2.0**-6, 2.0**-9, 120),
    ("e3m4", 8, 15.5, 2.0**-2, 2.0**-6, 112),
    ("e5m2fnuz", 8, 57344, 2.0**-15, 2.0**-17, 128),
    ("e4m3fnuz", 8, 240, 2.0**-7, 2.0**-10, 128),
    ("e4m3b11fnuz", 8, 30, 2.0**-10, 2.0**-13, 128),
    ("e3m2fn", 6, 28, 2.0**-2, 2.0**-4, 32),
    ("e2m3fn", 6, 7.5, 1, 2.0**-3, 32),
    ("e2m1fn", 4, 6, 1, 0.5, 8),
    ("e8m0", 8, 2.0**127, 2.0**-127, 2.0**-127, 255),
    ("ue4m3", 7, 448, 2.0**-6, 2.0**-9, 127),
    ("ue5m3", 8, 114688, 2.0**-14, 2.0**-17, 255),
    ("ue5m3_ieee", 8, 61440, 2.0**-14, 2.0**-17, 248),
]
# (format, input, code): sheet 28's golden checks, made with ml_dtypes.
ENCODED = [
    ("e4m3fn", 0.3, 0x2A), ("e4m3fn", 1.0625, 0x38), ("e4m3fn", 1.1875, 0x3A), ("e4m3fn", 17, 0x58),
    ("e4m3fn", 18, 0x59), ("e4m3fn", 19, 0x5A), ("e4m3fn", 447, 0x7E), ("e4m3fn", 464, 0x7E),
    ("e4m3fn", 2.0**-10, 0x00), ("e4m3fn", 1.5 * 2.0**-10, 0x01), ("e4m3fn", 0.015, 0x08), ("e4m3fn", -0.0, 0x80),
    ("e5m2", 0.3, 0x35), ("e5m2", 1.125, 0x3C), ("e5m2", 1.375, 0x3E), ("e5m2", 61439, 0x7B),
    ("e5m2", 2.0**-17, 0x00), ("e5m2", 1.5 * 2.0**-17, 0x01),
]  # fmt: skip
# Nearest-even thresholds of e2m1fn: (largest input that still becomes the value, value).
E2M1_STEPS = [(0.25, 0.0), (0.75, 0.5), (1.25, 1.0), (1.75, 1.5), (2.5, 2.0), (3.5, 3.0), (5.0, 4.0), (1e9, 6.0)]
E2M1_TIES_DOWN = {0.25, 1.25, 2.5, 5.0}  # to the even code; the other ties go up


@pytest.mark.parametrize("name", TABLES)
def test_published_table(name):
    fmt, table = format_(name), torch.tensor(TABLES[name], dtype=torch.float32)
    codes = torch.arange(len(table))
    assert torch.equal(fmt.decode(codes), table)
    assert torch.equal(fmt.decode(codes + len(table)), -table)
    assert fmt.decode(torch.tensor(len(table))).signbit()  # the code of -0
    assert torch.equal(fmt.values(), torch.cat([-table.flip(0)[:-1], table]).double())


@pytest.mark.parametrize(("name", "bits", "largest", "normal", "smallest", "count"), FACTS)
def test_published_facts(name, bits, largest, normal, smallest, count):
    fmt = format_(name)
    assert (fmt.bits, fmt.max, fmt.smallest_normal, fmt.smallest) == (bits, largest, normal, smallest)
    if count is not None:
        positive = fmt.values()[fmt.values() >= 0]
        assert len(positive) == count
        assert positive[-1] == largest
        assert positive[positive > 0][0] == smallest


@pytest.mark.parametrize(("name", "x", "code"), ENCODED)
def test_published_codes(name, x, code):
    assert format_(name).encode(torch.tensor(float(x))) == code


def test_e4m3fn_golden_runs():
    fmt = format_("e4m3fn")
    subnormal, top = torch.arange(8), torch.arange(0x70, 0x7F)
    assert torch.equal(fmt.decode(subnormal), subnormal * 2.0**-9)
    expected = [128, 144, 160, 176, 192, 208, 224, 240, 256, 288, 320, 352, 384, 416, 448]
    assert fmt.decode(top).tolist() == expected
    assert fmt.decode(torch.tensor([0x7F, 0xFF])).isnan().all()


def test_e5m2_is_the_top_byte_of_float16():
    fmt, codes = format_("e5m2"), torch.arange(256)
    high = (codes << 8).to(torch.int16).view(torch.float16).float()
    assert not first_difference(fmt.decode(codes), high, codes)
    every = torch.arange(-(1 << 15), 1 << 15).to(torch.int16)
    x = every.view(torch.float16)
    truncated = (every.int() >> 8 & 0xFF).to(torch.uint8)
    kept = x.isfinite()
    assert torch.equal(fmt.encode(x, rounding("toward-zero"))[kept], truncated[kept])


def test_e2m1_thresholds():
    fmt, start = format_("e2m1fn"), 0.0
    for end, value in E2M1_STEPS:
        inside = torch.linspace(start, end, 101, dtype=torch.float64)[1:-1]
        assert (fmt.round(inside) == value).all()
        above = value if end in E2M1_TIES_DOWN or end > 6 else next(v for e, v in E2M1_STEPS if e > end)
        assert fmt.round(torch.tensor(end)) == above
        start = end


@pytest.mark.parametrize(("name", "edge"), [("e4m3fn", 464.0), ("e5m2", 61440.0), ("e4m3", 248.0), ("e2m1fn", 1e9)])
def test_overflow_policies(name, edge):
    """The tie above the maximum: e4m3fn's is even and stays, the IEEE ones' even neighbour is infinity."""
    saturating = format_(name)
    open_ended = dataclasses.replace(saturating, saturate=False)
    beyond = torch.tensor([edge * 1.001, torch.inf])
    assert (saturating.round(beyond) == saturating.max).all()
    assert (saturating.round(-beyond) == -saturating.max).all()
    match saturating.specials:
        case Specials.IEEE:
            assert open_ended.round(beyond).tolist() == [torch.inf, torch.inf]
            assert open_ended.round(torch.tensor(edge)) == torch.inf
        case Specials.FN:
            assert open_ended.round(beyond).isnan().all()
            assert open_ended.round(torch.tensor(edge)) == saturating.max
        case _:
            assert (open_ended.round(beyond) == saturating.max).all()


def near_every_edge(fmt: Minifloat) -> list[float]:
    """Float64 inputs on, between and a hair beside the values of ``fmt`` (at most some 600), of both signs."""
    ladder = ladder_of(fmt).values
    if len(ladder) > 130:
        chosen = random.Random(0).sample(range(1, len(ladder) - 2), 40)
        rungs = [ladder[i + k] for i in (0, *chosen, len(ladder) - 2) for k in (0, 1)]
        pairs = list(zip(rungs[::2], rungs[1::2], strict=True))
    else:
        pairs = list(itertools.pairwise(ladder))
    points = [float(p) for low, high in pairs for p in (low, (low + high) / 2, (3 * low + high) / 4)]
    hair = [p * (1 + side * 2.0**-45) for p in points for side in (-1, 1)]
    points = [*points, *hair, float(ladder[-1]), float(ladder[-1]) * 4, 1e-300, 1e300, 5e-324, torch.inf, torch.nan]
    return [sign * p for p in points for sign in (1.0, -1.0)]


@pytest.mark.parametrize("fmt", [f for f in [*MINIFLOATS, *UNUSUAL] if f.bits <= 16], ids=str)
def test_float64_near_ties_against_exact_arithmetic(fmt):
    """Double rounding shows on inputs a hair beside a tie: float32 would swallow the hair."""
    inputs = near_every_edge(fmt)
    x = torch.tensor(inputs, dtype=torch.float64)
    for mode in MODES:
        expected = [round_minifloat(fmt, v, mode) for v in inputs]
        assert not first_difference(fmt.round(x, rounding(mode)), expected, x), mode
        decoded = fmt.decode(fmt.encode(x, rounding(mode))).double()
        expected = torch.tensor(expected, dtype=torch.float64)
        kept = ~expected.isnan() if fmt.nan_code is None else torch.ones_like(x, dtype=torch.bool)
        assert not first_difference(decoded[kept], expected[kept], x[kept]), mode


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fmt", [format_("float32"), Minifloat("e8m22", 8, 22, 127, saturate=False)], ids=str)
def test_the_widest_formats_are_rounded_once_from_float64(fmt, mode):
    """float32 itself leaves float32 no spare bit to remember what was cut off."""
    last = last_code(fmt)
    codes = [0, 1, 2, 2**fmt.mantissa - 1, 2**fmt.mantissa, last - 1, last, *random.Random(0).sample(range(last), 200)]
    cases = []
    for code in codes:
        low, high = (minifloat_magnitude(fmt, c) for c in (code, code + 1))
        for part in (Fraction(0), Fraction(1, 2), Fraction(1, 2) + Fraction(1, 2**25), Fraction(3, 2**26)):
            for negative in (False, True):
                up = part > 0 and goes_up(mode, code % 2 == 1, part, negative)
                beyond = torch.inf if leaves_range(mode, negative) else float(low)
                expected = beyond if up and code == last else float(high if up else low)
                cases.append([(-1.0) ** negative * float(v) for v in (low + part * (high - low), expected)])
    x, expected = torch.tensor(cases, dtype=torch.float64).T
    assert not first_difference(fmt.round(x, rounding(mode)), expected, x)
    assert not first_difference(fmt.decode(fmt.encode(x, rounding(mode))), expected, x)


def test_a_format_without_subnormals_never_writes_an_unused_code():
    fmt = UNUSUAL[0]
    x = torch.linspace(-2 * fmt.smallest_normal, 2 * fmt.smallest_normal, 10_001)
    for mode in MODES:
        magnitudes = fmt.encode(x, rounding(mode)) & 0x7F
        assert not ((magnitudes > 0) & (magnitudes < 8)).any()


@pytest.mark.parametrize("name", ["e8m0", "ue4m3", "ue5m3", "ue5m3_ieee"])
def test_unsigned_formats_refuse_negative_numbers_with_nan(name):
    fmt = format_(name)
    assert fmt.round(torch.tensor([-1.0, -1e-30, -torch.inf])).isnan().all()
    zeros = fmt.round(torch.tensor([0.0, -0.0]))
    assert zeros.isnan().all() if name == "e8m0" else (zeros.tolist() == [0, 0] and not zeros.signbit().any())


def test_nan_keeps_its_sign_in_the_code_where_a_format_has_two():
    nan = torch.tensor([torch.nan, -torch.nan]).copysign(torch.tensor([1.0, -1.0]))
    assert format_("e4m3fn").encode(nan).tolist() == [0x7F, 0xFF]
    assert format_("e4m3fnuz").encode(nan).tolist() == [0x80, 0x80]
    assert format_("e8m0").encode(nan).tolist() == [0xFF, 0xFF]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ((0, 3, 7), "exponent must be 1 to 8"),
        ((9, 3, 7), "exponent must be 1 to 8"),
        ((4, 24, 7), "mantissa 0 to 23"),
        ((4, 3, 129), "bias 129"),
        ((8, 3, 128, Specials.FN, Bottom.ZERO), "bias 128"),
        ((5, 21, 15), "more than 20 mantissa bits need float32's bias"),
        ((8, 3, 90), "range"),
        ((1, 0, 0, Specials.IEEE), "range"),
        ((4, 3, 8, Specials.FNUZ, Bottom.SUBNORMAL, False), "fnuz needs a sign"),
        ((8, 0, 127, Specials.FN), "IEEE"),
        ((3, 2, 3, Specials.FN, Bottom.NORMAL), "without a zero"),
        ((3, 2, 3, Specials.NONE, Bottom.NORMAL, False), "without a zero"),
    ],
)
def test_impossible_definitions_are_refused_at_birth(fields, said):
    with pytest.raises(InputError, match=said):
        Minifloat("impossible", *fields)


def test_integers_are_no_input():
    with pytest.raises(InputError, match=r"torch\.int64"):
        format_("e4m3fn").round(torch.arange(4))

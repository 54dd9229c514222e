"""Scale rules: against exact arithmetic, against torchao, and at every edge."""

import importlib.util
import logging
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.cast_references import (
    FLOAT32_MAX,
    f32,
    narrow_scale,
    power_of_two_scale,
    shared_exponent,
    two_level_scale,
    wide_scale,
)
from tests.witnesses import first_difference

from narrowcast.errors import InputError
from narrowcast.formats import format as format_
from narrowcast.scaling import Delayed, Narrow, One, PowerOfTwo, TwoLevel, Wide, advance, scale_rule

RULES = ["floor", "ceil", "ceil-exponent", "even", "nearest", "three-quarters", "four-thirds"]
ELEMENTS = ["e2m1fn", "e2m3fn", "e3m2fn", "e4m3fn", "e5m2", "e3m0fn", "int4", "int8", "q1.6", "float16", "bfloat16"]
SATURATING = [e for e in ELEMENTS if e not in ("float16", "bfloat16")]
SPELLINGS = ["fp32", *(f"e8m0-{r}" for r in RULES), "e4m3fn", "ue5m3", "e5m2", "bfloat16", "float16"]
SPELLINGS += ["e4m3fn+fp32", "ue4m3+fp32", "ue5m3+fp32"]
NORMAL = st.floats(2.0**-120, FLOAT32_MAX, width=32)


def amaxes() -> list[float]:
    """Float32 maxima on, just below and just above every power of two times every interesting significand."""
    values = []
    for k in (-126, -100, -20, -1, 0, 1, 5, 60, 127):
        for significand in (1.0, 1.25, math.sqrt(2), 1.5, 1.75, 1.875, 1.9375, 1.984375, 2 - 2.0**-23):
            v = torch.tensor(significand * 2.0**k)
            values += [float(v), float(torch.nextafter(v, v * 2)), float(torch.nextafter(v, v / 2))]
    return [v for v in values if 2.0**-126 <= v < math.inf]


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("rule", RULES)
def test_powers_of_two_against_exact_arithmetic(rule, element):
    fmt, values = format_(element), amaxes()
    scale = PowerOfTwo(rule).scale(torch.tensor(values), fmt)
    expected = [min(max(shared_exponent(rule, v, fmt.max, fmt.precision), -127), 127) + 127 for v in values]
    assert scale.stored.tolist() == expected
    assert not first_difference(scale.back[0], [power_of_two_scale(rule, v, fmt)[0][0] for v in values], values)
    assert not first_difference(scale.into, [power_of_two_scale(rule, v, fmt)[1] for v in values], values)


@given(st.lists(NORMAL, min_size=1, max_size=20), st.sampled_from(RULES), st.sampled_from(ELEMENTS))
@settings(max_examples=200, deadline=None)
def test_powers_of_two_for_any_amax(values, rule, element):
    fmt = format_(element)
    expected = [min(max(shared_exponent(rule, v, fmt.max, fmt.precision), -127), 127) + 127 for v in values]
    assert PowerOfTwo(rule).scale(torch.tensor(values), fmt).stored.tolist() == expected


@given(NORMAL, st.sampled_from(ELEMENTS))
@settings(max_examples=200, deadline=None)
def test_what_each_rule_promises(amax, element):
    """floor: scaled amax in [2^emax, 2^(emax+1)). ceil: the least that never saturates. four-thirds: never saturates."""
    fmt, x = format_(element), torch.tensor([amax])
    top = 2.0**fmt.top_exponent
    if not 2.0**-118 * top < amax < 2.0**127:
        return  # the exponent is clamped there
    scaled = {rule: amax * float(PowerOfTwo(rule).scale(x, fmt).into) for rule in RULES}
    assert top <= scaled["floor"] < 2 * top
    assert fmt.max / 2 < scaled["ceil"] <= fmt.max
    assert top / 2 < scaled["ceil-exponent"] <= top
    assert 0.75 * top <= scaled["four-thirds"] < 1.5 * top
    assert top / math.sqrt(2) * (1 - 2.0**-22) <= scaled["nearest"] < math.sqrt(2) * top
    assert 0.875 * top <= scaled["three-quarters"] < 1.75 * top
    assert scaled["even"] <= 2 * top * (1 - 2.0 ** -(fmt.precision + 2))


@pytest.mark.parametrize("element", ELEMENTS)
def test_float32_and_narrow_scales_against_scalar_arithmetic(element):
    fmt, values = format_(element), amaxes()
    x = torch.tensor(values)
    for rule, reference in [
        (Wide(), wide_scale),
        (Narrow(format_("e4m3fn")), lambda v, f: narrow_scale(v, f, format_("e4m3fn"))),
        (Narrow(format_("ue5m3")), lambda v, f: narrow_scale(v, f, format_("ue5m3"))),
    ]:
        scale = rule.scale(x, fmt)
        assert not first_difference(scale.back[0], [reference(v, fmt)[0][0] for v in values], values)
        assert not first_difference(scale.into, [reference(v, fmt)[1] for v in values], values)


@given(st.lists(st.floats(0, FLOAT32_MAX, width=32), min_size=1, max_size=12), st.sampled_from(["e2m1fn", "int4"]))
@settings(max_examples=200, deadline=None)
def test_two_levels_against_scalar_arithmetic(values, element):
    fmt, scale_format = format_(element), format_("e4m3fn")
    scale = TwoLevel(scale_format).scale(torch.tensor(values), fmt)
    expected = [two_level_scale(v, max(values), fmt, scale_format) for v in values]
    assert not first_difference(scale.back[0], [back[0] for back, _ in expected], values)
    assert float(scale.tensor) == float(scale.back[1]) == expected[0][0][1]
    assert not first_difference(scale.into, [into for _, into in expected], values)


def test_nvfp4_worked_examples():
    """formats-reference, section 3: amax of the tensor 12."""
    fmt = format_("e2m1fn")
    scale = TwoLevel(format_("e4m3fn")).scale(torch.tensor([12.0, 1.0, 5.0]), fmt)
    assert float(scale.tensor) == f32(1 / 224)
    assert scale.back[0].tolist() == [448.0, 36.0, 192.0]
    assert float(scale.into[1]) == pytest.approx(6.2222, abs=1e-4)
    assert 5 * float(scale.into[2]) == pytest.approx(5.8333, abs=1e-4)
    values = scale.apply(fmt.round(torch.tensor([12.0, 1.0, 5.0]) * scale.into))
    assert values[1] == pytest.approx(0.9642857, abs=1e-7)


def test_nvfp4_flushes_blocks_far_below_the_tensors_maximum():
    """The e4m3fn scale is a tie to 0 at 2^-10 / 448 of the tensor's amax."""
    edge = 2.0**-10 / 448
    scale = TwoLevel(format_("e4m3fn")).scale(torch.tensor([1.0, edge * 0.99, edge * 1.01]), format_("e2m1fn"))
    assert scale.back[0].tolist() == [448.0, 0.0, 2.0**-9]
    assert (scale.apply(torch.full((3,), 6.0))[1]) == 0


def significand(x: torch.Tensor) -> torch.Tensor:
    return x.view(torch.int32) & 0x7FFFFF


def matches_torchao(ours: str, theirs: str, name: str, element: torch.dtype | str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # it says which of its CUDA libraries do not load here
        from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_mx

        logging.disable(logging.NOTSET)
    values = torch.tensor([v for v in amaxes() if 1e-35 < v < 1e37])
    if theirs == "RCEIL":  # see the next test
        values = values[significand(values) != significand(torch.tensor(format_(name).max)) + 1]
    generator = torch.Generator().manual_seed(0)
    x = values[:, None] * (torch.rand(len(values), 32, generator=generator) * 1.9 - 0.95)
    x[:, 5] = values
    scale, codes = to_mx(x, element, 32, ScaleCalculationMode[theirs])
    rule, fmt = PowerOfTwo(ours), format_(name)
    found = rule.scale(x.abs().amax(-1, keepdim=True), fmt)
    assert torch.equal(found.stored[:, 0], scale.view(torch.uint8).view(-1))
    if element is not torch.float4_e2m1fn_x2:  # those come packed: the scales are the point here
        assert torch.equal(fmt.encode(x * found.into), codes.view(torch.uint8))


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed (dev extra)")
@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("e4m3fn", torch.float8_e4m3fn),
        ("e5m2", torch.float8_e5m2),
        ("e2m1fn", torch.float4_e2m1fn_x2),
        ("e3m2fn", "fp6_e3m2"),
        ("e2m3fn", "fp6_e2m3"),
    ],
)
@pytest.mark.parametrize(
    ("ours", "theirs"), [("floor", "FLOOR"), ("ceil", "RCEIL"), ("ceil-exponent", "CEIL"), ("even", "EVEN")]
)
def test_torchao_scale_calculation_modes(ours, theirs, name, element):
    """floor = FLOOR, ceil = RCEIL, ceil-exponent = CEIL, even = EVEN; scales and element codes, normal amax."""
    matches_torchao(ours, theirs, name, element)


def test_torchao_rceil_saturates_one_ulp_above_a_power_of_two_times_max():
    """It takes the logarithm in float32, which rounds log2(2^-9 (1 + 2^-23)) to -9; ours compares the bits."""
    just_above = torch.nextafter(torch.tensor(0.875), torch.tensor(1.0))  # 448 * 2^-9
    assert torch.ceil(torch.log2(just_above / 448)) == -9
    assert PowerOfTwo("ceil").scale(just_above[None], format_("e4m3fn")).back[0] == 2.0**-8


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("element", SATURATING)
def test_edges_are_the_same_for_every_rule(spelling, element):
    """amax = 0, subnormal, float32's maximum, infinity and NaN, each in a tensor of its own."""
    rule, fmt = scale_rule(spelling), format_(element)

    def back_and_forth(amax, value):
        scale = rule.scale(torch.tensor([amax]), fmt)
        return scale, scale.apply(fmt.round(torch.tensor([value]) * scale.into))

    scale, values = back_and_forth(0.0, 0.0)
    assert values.item() == 0
    assert all(b.isfinite().all() for b in scale.back) and scale.into.isfinite().all()
    for tiny in (1e-45, 1e-40, 2.0**-127, 2.0**-126):
        scale, values = back_and_forth(tiny, tiny)
        assert scale.into.isfinite().all() and 0 <= values.item() <= 2.0**-124  # 0: it underflowed
    scale, values = back_and_forth(FLOAT32_MAX, FLOAT32_MAX)
    assert scale.into.isfinite().all() and (scale.into > 0).all()
    assert values.item() > 0.9 * FLOAT32_MAX or values.item() == fmt.max * math.prod(float(b) for b in scale.back)
    for bad in (math.inf, math.nan):
        scale, values = back_and_forth(bad, 1.0)
        assert values.isnan().all()
        again = rule.restore(scale.stored, scale.tensor)
        assert math.isnan(math.prod(float(f) for f in again))  # what is stored says so too


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_restore_gives_the_factors_back_bit_for_bit(spelling):
    rule, fmt = scale_rule(spelling), format_("e2m1fn")
    amax = torch.tensor([0.0, 1e-30, 0.3, 5.0, 1e30, 7.0])
    scale = rule.scale(amax, fmt)
    restored = rule.restore(scale.stored, scale.tensor)
    assert len(restored) == len(scale.back)
    for found, expected in zip(restored, scale.back, strict=True):
        assert torch.equal(found, expected)


def test_one_bad_block_poisons_itself_and_under_two_levels_the_whole_tensor():
    amax = torch.tensor([1.0, math.inf, 2.0])
    for spelling in ("fp32", "e8m0", "e4m3fn"):
        assert scale_rule(spelling).scale(amax, format_("e2m1fn")).into.isnan().tolist() == [False, True, False]
    assert scale_rule("e4m3fn+fp32").scale(amax, format_("e2m1fn")).into.isnan().all()


@pytest.mark.parametrize(
    "spelling",
    [
        *SPELLINGS,
        "one",
        "fp32-delayed16",
        "fp32-headroom22",
        "e8m0",
        "e8m0-headroom9",
        "e8m0-ceil-headroom2",
        "ue5m3_ieee+fp32",
        "float32",
    ],
)
def test_spelling_round_trip(spelling):
    rule = scale_rule(spelling)
    assert scale_rule(str(rule)) == rule
    assert str(rule) == ("e8m0" if spelling == "e8m0-floor" else spelling)


def test_other_names_of_e8m0_mean_the_same_rule():
    assert scale_rule("e8m0fnu") == scale_rule("e8m0") == scale_rule("e8m0-floor")


def test_bits():
    bits = {s: (scale_rule(s).bits, scale_rule(s).tensor_bits) for s in ("one", "fp32", "e8m0", "ue5m3", "e4m3fn+fp32")}
    assert bits == {"one": (0, 0), "fp32": (32, 0), "e8m0": (8, 0), "ue5m3": (8, 0), "e4m3fn+fp32": (8, 32)}


@pytest.mark.parametrize(
    ("spelling", "said"),
    [
        ("e8m0-flor", "nearest: floor"),
        ("fp32-delayed", "expected delayedN"),
        ("fp32-delayed0", "expected delayedN"),
        ("fp32-headroom0", "or headroomN"),
        ("fp32-headroom200", "0 to 126"),
        ("one-more", "unknown format"),
        ("e4m3fn+fp16", "optionally with"),
        ("int8", "a float format such as"),
        ("e2m1fn", "e2m1fn has no NaN"),
        ("", "unknown format"),
        ("e8m0+fp32", "whole range"),
        ("bfloat16+fp32", "whole range"),
    ],
)
def test_bad_spellings_are_refused(spelling, said):
    with pytest.raises(InputError, match=said):
        scale_rule(spelling)


@pytest.mark.parametrize("spelling", ["e4m3fn+fp32", "e4m3fn+divide-fp32", "dynamic8+fp32x256-mean"])
def test_two_levels_need_their_second(spelling):
    with pytest.raises(InputError, match="needs its second level to decode"):
        scale_rule(spelling).restore(torch.zeros(1, dtype=torch.uint8), None)


def test_one_changes_nothing():
    scale = One().scale(torch.tensor([5.0]), format_("bfloat16"))
    assert (scale.back, scale.into.tolist(), One().needs_amax) == ((), [1.0], False)


def test_delayed_scaling_follows_the_largest_finished_maximum():
    delayed = Delayed(3)
    history = delayed.new()
    used = []
    for amax in (4.0, 2.0, 8.0, 1.0, 1.0, 1.0, 1.0):
        used.append(float(delayed.amax(history, torch.tensor(amax))))
        advance(history)
    assert used == [4.0, 4.0, 4.0, 8.0, 8.0, 8.0, 1.0]  # the first has no history and uses its own


def test_delayed_scaling_is_unmoved_by_recomputation_and_by_infinity():
    delayed = Delayed(2)
    once, twice = delayed.new(), delayed.new()
    delayed.amax(once, torch.tensor(3.0))
    for _ in range(2):  # activation checkpointing runs a forward pass again
        delayed.amax(twice, torch.tensor(3.0))
    assert torch.equal(once, twice)
    advance(once)
    for bad in (math.inf, math.nan):
        assert not math.isfinite(delayed.amax(once, torch.tensor(bad)))
    assert once.tolist() == [0.0, 3.0, 0.0]


def test_four_thirds_keeps_the_block_maximum_unbiased_where_floor_cannot():
    """Sheet 61: a block with amax 7.8. Floor maps it to 7.8, beyond e2m1fn's 6; 3/4 of it is 5.85.

    Every 16-bit draw once, so the mean is exact but for the resolution of a draw.
    """
    fmt, draws = format_("e2m1fn"), torch.arange(1 << 16, dtype=torch.int32)
    from narrowcast.formats import rounding

    def mean(rule):
        scale = PowerOfTwo(rule).scale(torch.tensor([7.8]), fmt)
        scaled = (torch.tensor([7.8]) * scale.into).expand(draws.shape)
        return float(scale.apply(fmt.round(scaled, rounding("stochastic"), draws)).double().mean())

    assert mean("four-thirds") == pytest.approx(7.8, abs=2 * 4 / 3 * 2.0**-16)
    assert mean("ceil") == pytest.approx(7.8, abs=4 * 2.0**-16)
    assert mean("floor") == 6.0

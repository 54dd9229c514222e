"""IEEE P3109 formats and everything else that gfloat lists, against gfloat: every code, every 16-bit input."""

import numpy as np
import pytest
import torch
from gfloat import Domain, RoundMode, Signedness, decode_ndarray, encode_ndarray, round_ndarray
from gfloat.formats import all_block_formats, format_info_p3109, sample_formats
from tests.witnesses import GFLOAT_MODES, every_half, first_difference

from narrowcast.formats import Specials, rounding
from narrowcast.formats import format as format_
from narrowcast.quantize import cast

SIGNS, DOMAINS = {"s": Signedness.Signed, "u": Signedness.Unsigned}, {"e": Domain.Extended, "f": Domain.Finite}
UP_TO_8_BITS = [
    (k, p, s, d) for k in range(3, 9) for p in range(1, k + 1) for s in "su" for d in "ef" if p < k or s == "u"
]
WIDER = [
    (9, 4, "s", "e"),
    (11, 5, "u", "f"),
    (12, 6, "s", "e"),
    (16, 8, "s", "e"),
    (16, 11, "s", "e"),
    (15, 9, "u", "e"),
]
HALVES = torch.cat(list(every_half().values()))
OURS = {"ocp_int8": "q1.6_full", "binary16": "float16", "binary32": "float32"}


def info_and_format(k, precision, sign, domain):
    return format_info_p3109(k, precision, SIGNS[sign], DOMAINS[domain]), format_(
        f"binary{k}p{precision}{sign}{domain}"
    )


def ours(name: str) -> str:
    """Our name of a format of gfloat."""
    if name.startswith("p3109_k"):
        return f"binary{name.removeprefix('p3109_k')}"
    short = name.removeprefix("ocp_")
    return {"e4m3": "e4m3fn", "e8m0": "e8m0"}.get(short, OURS.get(name, short))


@pytest.mark.parametrize("case", [*UP_TO_8_BITS, *WIDER], ids=lambda c: "binary{}p{}{}{}".format(*c))
def test_every_code_decodes_as_in_gfloat(case):
    info, fmt = info_and_format(*case)
    codes = fmt.codes()
    assert not first_difference(fmt.decode(codes), decode_ndarray(info, codes.numpy().astype(np.int64)), codes)
    assert (fmt.bits, fmt.max, fmt.smallest) == (info.k, info.max, info.smallest)


@pytest.mark.parametrize("mode", GFLOAT_MODES)
@pytest.mark.parametrize(
    "case", [c for c in UP_TO_8_BITS if c[0] in (4, 8)], ids=lambda c: "binary{}p{}{}{}".format(*c)
)
def test_every_16_bit_input_rounds_and_encodes_as_in_gfloat(case, mode):
    info, fmt = info_and_format(*case)
    x = HALVES if case[2] == "s" else HALVES[~HALVES.signbit()]  # gfloat has no rule for a sign that is not there
    with np.errstate(all="ignore"):
        expected = round_ndarray(info, x.double().numpy(), GFLOAT_MODES[mode], sat=fmt.saturate)
    assert not first_difference(fmt.round(x, rounding(mode)), expected, x)
    number = ~np.isnan(expected)
    codes = fmt.encode(x, rounding(mode)).numpy()
    assert np.array_equal(codes[number], encode_ndarray(info, expected[number]))
    assert set(codes[~number]) == {fmt.nan_code}


@pytest.mark.parametrize("case", WIDER, ids=lambda c: "binary{}p{}{}{}".format(*c))
def test_wide_formats_run_over_into_infinity_or_nan_as_in_gfloat(case):
    info, fmt = info_and_format(*case)
    x = HALVES[~HALVES.signbit()][::7]
    with np.errstate(all="ignore"):
        expected = round_ndarray(info, x.double().numpy(), RoundMode.TiesToEven, sat=False)
    assert not fmt.saturate
    assert not first_difference(fmt.round(x), expected, x)


@pytest.mark.parametrize("info", sample_formats, ids=lambda i: i.name)
def test_every_format_that_gfloat_lists_is_here(info):
    if info.name == "binary64":
        return  # wider than float32, in which every format here is carried
    fmt = format_(ours(info.name))
    assert (fmt.bits, fmt.max, fmt.smallest) == (info.k, info.max, info.smallest)
    if fmt.bits <= 16:
        codes = fmt.codes()
        assert not first_difference(fmt.decode(codes), decode_ndarray(info, codes.numpy().astype(np.int64)), codes)


@pytest.mark.parametrize("info", all_block_formats, ids=lambda i: i.name)
def test_every_block_format_that_gfloat_lists_is_here(info):
    found = cast({"mxfp4_e2m1": "mxfp4"}.get(info.name, info.name))
    assert found.format.bits == info.element_bits
    assert found.format.max == min(info.etype.max, -info.etype.min)
    assert (found.tile.cols, found.scale.bits) == (info.k, info.scale_bits)


def test_the_finite_signed_formats_of_8_bits_are_the_fnuz_ones():
    for p3109, fnuz in (("binary8p3sf", "e5m2fnuz"), ("binary8p4sf", "e4m3fnuz")):
        one, other = format_(p3109), format_(fnuz)
        assert one.specials is other.specials is Specials.FNUZ
        assert torch.equal(one.decode(one.codes()).nan_to_num(-1), other.decode(other.codes()).nan_to_num(-1))

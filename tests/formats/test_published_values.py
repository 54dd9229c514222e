"""Value tables and worked numbers of the papers that bring a format, where no library lists it."""

import pytest
import torch

import narrowcast as nc
from narrowcast.formats import format as format_

# "Shedding the Bits" (minifloat PTQ on FPGAs), bias 2**(E-1) - 1: the non-negative values, in code order
MINIFLOATS = {
    "e2m0fn": [0, 1, 2, 4],
    "e1m1fn": [0, 1, 2, 3],
    "e2m2fn": [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7],
    "e3m1fn": [0, 0.125, 0.25, 0.375, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24],
}


@pytest.mark.parametrize("name", MINIFLOATS)
def test_minifloat_tables(name):
    fmt = format_(name)
    assert fmt.decode(fmt.codes())[: 1 << (fmt.bits - 1)].tolist() == MINIFLOATS[name]


@pytest.mark.parametrize(("mantissa", "largest"), [(5, 3.9375), (4, 15.5), (3, 240), (2, 57344)])
def test_eight_bits_without_specials_top_out_where_the_power_of_the_exponent_says(mantissa, largest):
    """Kuzmin et al. 2022: bias 2**(E-1), every code a number, so 2**7 magnitudes whatever the split."""
    exponent = 7 - mantissa
    fmt = format_(f"e{exponent}m{mantissa}b{2 ** (exponent - 1)}_none")
    assert fmt.max == largest
    assert (fmt.values() >= 0).sum() == 128


@pytest.mark.parametrize("mantissa", [1, 2, 3, 6])
def test_one_exponent_bit_is_a_narrow_range_integer(mantissa):
    """Under the scale of the largest value e1mM is the symmetric integer of M + 2 bits, output for output."""
    x = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    floating, integer = (nc.cast(f"{f}/1x32/fp32").apply(x) for f in (f"e1m{mantissa}_none", f"int{mantissa + 2}"))
    top = 2 ** (mantissa + 1) - 1
    exact = x.view(64, -1, 32).double() / x.view(64, -1, 32).double().abs().amax(-1, keepdim=True) * top
    decided = ((exact - exact.floor() - 0.5).abs() > 1e-5).view(64, 128)  # elsewhere a scale's last bit breaks the tie
    assert decided.float().mean() > 0.99
    assert torch.allclose(floating[decided], integer[decided], rtol=3e-7, atol=0)


@pytest.mark.parametrize(
    ("mode", "values"),
    [("nearest-even", [1, -1, 2, -2]), ("up", [1.125, -1, 2, -1.875]), ("down", [1, -1.125, 1.875, -2]),
     ("toward-zero", [1, -1, 1.875, -1.875]), ("nearest-away", [1.125, -1.125, 2, -2]), ("odd", [1.125, -1.125, 1.875, -1.875])],
)  # fmt: skip
def test_pychops_modes_as_its_paper_means_them(mode, values):
    """Its q43 is e4m3; 1.0625 is a tie. The package itself breaks ties of negative numbers and odd the wrong way."""
    tie = 1.0625 if mode == "nearest-away" else 1.06
    assert nc.round(torch.tensor([tie, -tie, 1.9999, -1.9999]), "e4m3", mode).tolist() == values


@pytest.mark.parametrize(
    ("name", "largest", "smallest", "precision"),
    [("e5m10", 65504, 2.0**-24, 10), ("e8m7", 3.3895313892515355e38, 2.0**-133, 7), ("e4m3", 240, 2.0**-9, 3),
     ("e5m2", 57344, 2.0**-16, 2)],
)  # fmt: skip
def test_pychops_named_formats(name, largest, smallest, precision):
    fmt = format_(name)
    assert (fmt.max, fmt.smallest, fmt.precision) == (largest, smallest, precision)


def test_fixed_point_of_hls():
    """ap_fixed<8, 2> (QFX sheet): SAT is the full range, SAT_SYM the symmetric one; the modes by their HLS names."""
    x = torch.tensor([0.3, 1.99, 2.5, -2.1])
    assert nc.round(x, "q1.6_full").tolist() == [0.296875, 1.984375, 1.984375, -2.0]
    assert nc.round(x, "q1.6").tolist() == [0.296875, 1.984375, 1.984375, -1.984375]
    assert nc.round(torch.tensor([-0.3]), "q1.6_full", "down").item() == -0.3125  # AP_TRN
    modes = {"nearest-up": [-2, 3], "nearest-even": [-2, 2], "nearest-away": [-3, 3], "nearest-down": [-3, 2]}
    modes |= {"nearest-zero": [-2, 2], "toward-zero": [-2, 2], "down": [-3, 2]}
    for mode, halves in modes.items():  # AP_RND, RND_CONV, RND_INF, RND_MIN_INF, RND_ZERO, TRN_ZERO, TRN
        assert nc.round(torch.tensor([-2.5, 2.5]), "q7.0_full", mode).tolist() == halves, mode


def test_fixed_point_of_pychop_counts_the_sign_as_an_integer_bit():
    """Its Q(i, f) runs from -2**(i-1) to 2**(i-1) - 2**-f: our q{i-1}.{f}_full."""
    values = format_("q3.4_full").values()
    assert (values[0], values[-1], values.diff().unique().item()) == (-(2.0**3), 2.0**3 - 2.0**-4, 2.0**-4)

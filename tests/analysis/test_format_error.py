"""Errors of formats and casts, against the literature."""

import math

import pytest
import scipy.stats
import torch

import narrowcast as nc
from narrowcast.analysis.distributions import LAPLACE, NORMAL, UNIFORM, USUAL, distribution, student
from narrowcast.analysis.format_error import at_tile, cast_error, format_error, headroom, scaled_error
from narrowcast.errors import InputError
from narrowcast.formats import Minifloat, Specials
from narrowcast.scaling import tile


# J. Max 1960, "Quantizing for minimum distortion", table II: the best uniform quantizer of N(0,1) with N levels
@pytest.mark.parametrize(("name", "step", "error"), [("int2", 1.224, 0.1902), ("int3", 0.6508, 0.0469)])
def test_the_best_scale_is_that_of_the_literature(name: str, step: float, error: float) -> None:
    found = format_error(nc.format(name))
    assert found.scale == pytest.approx(step, rel=5e-3)
    assert found.mse == pytest.approx(error, rel=3e-3)


@pytest.mark.parametrize("name", ["float32", "bfloat16", "e4m3fn", "int16", "e8m0", "uint4", "int1_full"])
def test_every_kind_of_format_has_a_finite_error(name: str) -> None:
    found = format_error(nc.format(name), count=1 << 10)
    assert math.isfinite(found.sqnr)
    assert found.sqnr > 0


def test_three_more_mantissa_bits_are_eighteen_decibels() -> None:
    gap = format_error(nc.format("tf32")).sqnr - format_error(nc.format("bfloat16")).sqnr
    assert gap == pytest.approx(18.06, abs=0.25)  # each scale is free to miss its optimum by 0.2 dB


def test_the_error_of_a_cast_repeats_and_follows_its_seed() -> None:
    cast = nc.cast("e2m1fn/1x32/e8m0/stochastic")
    assert cast_error(cast) == cast_error(cast)
    assert cast_error(cast).mse != cast_error(cast, seed=1).mse


def test_a_delayed_cast_is_judged_on_its_first_step() -> None:
    plain, delayed = (cast_error(nc.cast(f"e4m3fn/tensor/{s}/nearest-even")) for s in ("fp32", "fp32-delayed16"))
    assert plain == delayed


def test_an_identity_loses_nothing() -> None:
    assert cast_error(nc.cast("float32")).sqnr == math.inf
    assert torch.equal(nc.cast("float32").apply(torch.ones(2)), torch.ones(2))


@pytest.mark.parametrize(
    ("found", "witness"),
    [
        (NORMAL, scipy.stats.norm()), (UNIFORM, scipy.stats.uniform(-math.sqrt(3), 2 * math.sqrt(3))),
        (LAPLACE, scipy.stats.laplace(scale=1 / math.sqrt(2))), (student(8), scipy.stats.t(8, scale=math.sqrt(6 / 8))),
    ],
    ids=["normal", "uniform", "laplace", "student8"],
)  # fmt: skip
def test_a_distribution_is_the_one_of_scipy_with_variance_1(found, witness):
    p = torch.tensor([1e-6, 0.01, 0.25, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64)
    assert found.quantile(p).numpy() == pytest.approx(witness.ppf(p.numpy()), rel=1e-6, abs=1e-9)
    assert witness.var() == pytest.approx(1)
    assert float(found.quantiles().mean()) == pytest.approx(0, abs=1e-12)
    assert found is distribution(found.name)


@pytest.mark.parametrize("name", ["int8", "e4m3fn", "e2m1fn", "uint4", "nf4", "float16"])
def test_formats_as_fine_at_the_top_as_anywhere_need_no_headroom(name):
    assert headroom(nc.format(name)) == 0


def test_samples_repeat_and_follow_their_seed():
    for law in USUAL:
        assert torch.equal(law.sample((4, 64), 1), law.sample((4, 64), 1))
        assert not torch.equal(law.sample((4, 64), 1), law.sample((4, 64), 2))


@pytest.mark.parametrize("name", ["student2", "cauchy", "student"])
def test_unknown_distributions_are_refused(name):
    with pytest.raises(InputError, match=name):
        distribution(name)


# Sheet 38: SQNR in dB at the best range between 0.1 and 1.2 times the largest of 400,000 draws. Its tolerance is 0.3 dB;
# under Student's t the first two depend on the largest draw, which 2**17 quantiles have smaller: there the order counts.
SHEET_38 = [
    (UNIFORM, [48.1, 44.4, 38.5, 32.4, 26.3], [0.3] * 5), (NORMAL, [40.4, 42.6, 37.6, 31.6, 25.6], [0.3] * 5),
    (student(8), [33.6, 37.7, 37.6, 31.6, 25.6], [2.5, 2.5, 0.3, 0.3, 0.3]),
]  # fmt: skip


@pytest.mark.parametrize(("law", "published", "tolerance"), SHEET_38, ids=["uniform", "normal", "student8"])
def test_the_table_of_fp8_the_power_of_the_exponent(law, published, tolerance):
    x = law.quantiles(1 << 17)
    floats = [Minifloat(f"e{e}m{7 - e}", e, 7 - e, 2 ** (e - 1), Specials.NONE) for e in (2, 3, 4, 5)]
    found = []
    for fmt in (nc.format("int8"), *floats):
        scales = torch.linspace(0.1, 1.2, 34) * float(x.max()) / fmt.max
        found.append(-10 * math.log10(min(scaled_error(fmt, x, float(s)) for s in scales) / float(x.square().mean())))
    assert all(abs(f - p) <= t for f, p, t in zip(found, published, tolerance, strict=True)), found
    assert max(range(5), key=found.__getitem__) == max(range(5), key=published.__getitem__)


# formats-reference, section 2: MSE of absmax blocks of N(0, 1); tolerance 2 %
@pytest.mark.parametrize(
    ("name", "errors"),
    [
        ("e2m1fn", [0.01022, 0.01116, 0.01186, 0.01325]),
        ("int4", [0.00941, 0.01156, 0.01376, 0.02038]),
        ("e3m0fn", [0.0326, 0.0354, 0.0370, 0.0382]),
    ],
)
def test_the_reference_table_of_absmax_blocks(name, errors):
    for size, expected in zip(("1x32", "1x64", "1x128", "1x1024"), errors, strict=True):
        assert cast_error(nc.cast(f"{name}/{size}/fp32")).mse == pytest.approx(expected, rel=0.02)


# Section 3 and sheet 33: SQNR in dB on N(0, 1), within 0.1
@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("int8/1x32/e8m0-ceil", 41.61), ("int6/1x32/e8m0-ceil", 29.43), ("int4/1x32/e8m0-ceil", 16.84),
        ("e2m1fn/1x32/e8m0-ceil", 18.76), ("nvfp4", 20.44), ("int4/1x16/e4m3fn+fp32", 21.28),
    ],
)  # fmt: skip
def test_measured_block_formats_of_sheet_33(spelling, expected):
    assert cast_error(nc.cast(spelling), shape=(512, 4096)).sqnr == pytest.approx(expected, abs=0.1)


def test_a_heavier_tail_costs_integers_and_not_floats():
    integers, floats = (
        [format_error(nc.format(n), law).sqnr for law in (NORMAL, student(5))] for n in ("int8", "e4m3fn")
    )
    assert integers[0] - integers[1] > 5
    assert floats[0] - floats[1] == pytest.approx(0, abs=0.2)


def test_another_tile_keeps_the_rest_of_the_cast():
    assert str(at_tile(nc.cast("nvfp4"), tile("1x32"))) == "e2m1fn/1x32/e4m3fn+fp32/nearest-even"
    assert str(at_tile(nc.cast("int8"), tile("row"))) == "int8/row/fp32/nearest-even"
    assert str(at_tile(nc.cast("posit8_1"), tile("1x32"))) == "posit8_1/1x32/fp32-headroom10/nearest-even"
    assert str(at_tile(nc.cast("bfloat16"), tile("row"))) == "bfloat16/row/one/nearest-even"
    assert str(at_tile(nc.cast("e4m3fn/tensor/fp32-delayed16"), tile("1x32"))) == "e4m3fn/1x32/fp32/nearest-even"


@pytest.mark.parametrize("name", ["posit8_1", "hif8"])
def test_headroom_makes_a_tapered_format_as_good_in_tiles_as_under_its_best_fixed_scale(name):
    assert cast_error(at_tile(nc.cast(name), tile("tensor"))).sqnr == pytest.approx(
        format_error(nc.format(name)).sqnr, abs=0.2
    )


def test_a_finer_tile_of_float32_scales_never_hurts_integers():
    at = [cast_error(nc.cast(f"int8/{t}/fp32")).sqnr for t in ("tensor", "row", "1x128", "1x64", "1x32", "1x16")]
    assert at == sorted(at)

"""Crest factors, and where integers and floats meet: the paper's figures (sheet 33)."""

import math

import pytest
import torch
from torch import nn

import narrowcast as nc
from narrowcast.analysis.crest import (
    E8M0,
    Fit,
    crest_factors,
    crossover,
    float_qsnr,
    gaussian_blocks,
    integer_qsnr,
    spread,
)
from narrowcast.analysis.distributions import NORMAL
from narrowcast.analysis.format_error import cast_error
from narrowcast.analysis.tensors import against, named
from narrowcast.errors import InputError
from narrowcast.scaling import tile


def published(bits: int, crest: float, fit: Fit) -> float:
    """The paper's own rounding of the integers' law: 4.78 + 6.02 b."""
    gain = 0.0 if fit.exact is None else 10 * math.log10(fit.exact / (fit.exact - 1))
    return 4.78 + 6.02 * bits - 20 * math.log10(fit.overhead * crest) + gain


@pytest.mark.parametrize(
    ("bits", "name", "fit", "crest", "decibels"),
    [
        (8, "e4m3fn", E8M0, 7.546, 31.86), (6, "e2m3fn", E8M0, 1.959, 31.54), (4, "e2m1fn", E8M0, 2.042, 19.14),
        (4, "e2m1fn", Fit(1.05, 16), 2.391, 21.14), (4, "e2m1fn", Fit(1.0, 16), 2.464, 21.31),
    ],
)  # fmt: skip
def test_the_published_crossovers(bits, name, fit, crest, decibels):
    fmt = nc.format(name)
    found = crossover(lambda k: published(bits, k, fit), lambda k: float_qsnr(fmt, k, fit))
    assert found == (pytest.approx(crest, abs=5e-4), pytest.approx(decibels, abs=5e-3))
    exact = crossover(lambda k: integer_qsnr(2 ** (bits - 1), k, fit), lambda k: float_qsnr(fmt, k, fit))
    assert exact == (pytest.approx(crest, abs=5e-3), pytest.approx(decibels, abs=5e-3))


def test_the_symmetric_range_costs_four_bits_more_than_a_decibel():
    assert integer_qsnr(8, 2.0) - integer_qsnr(7, 2.0) == pytest.approx(1.16, abs=5e-3)


def test_the_plateau_of_three_mantissa_bits():
    assert float_qsnr(nc.format("e4m3fn"), 3.0) == pytest.approx(31.86, abs=5e-3)


def test_no_crossing_is_none():
    assert crossover(lambda k: 1.0, lambda k: 2.0) is None


@pytest.mark.parametrize(("size", "mean"), [("1x32", 2.366), ("1x16", 2.110)])
def test_mean_crest_of_the_normal(size, mean):
    found = crest_factors(NORMAL.sample((512, 4096)), tile(size))
    assert found.numel() == 512 * 4096 // tile(size).cols
    assert float(found.mean()) == pytest.approx(mean, abs=5e-3)


def test_crest_factors_that_can_be_counted():
    x = torch.tensor([[3.0, -4.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0, -7.0]])
    assert crest_factors(x, tile("1x4+pad")).tolist() == pytest.approx([4 / 2.5, 1, 1])  # fill counts for nothing
    assert crest_factors(x, tile("tensor")).item() == pytest.approx(7 / math.sqrt(75 / 10))
    assert spread(crest_factors(torch.zeros(2, 4), tile("row"))) is None


@pytest.mark.parametrize("spelling", ["int8/1x32/e8m0-ceil", "int4/1x32/fp32", "e4m3fn/1x32/fp32", "mxfp4", "nvfp4"])
def test_the_law_of_gaussian_blocks_predicts_what_is_measured(spelling):
    cast = nc.cast(spelling)
    ends = [1.4 + 0.05 * i for i in range(60)]
    law = gaussian_blocks(cast, ends, cast.tile.cols)
    x = NORMAL.sample((256, 1024))
    crests = crest_factors(x, cast.tile)
    at = [min(law, key=lambda point: abs(point[0] - float(k)))[1] for k in crests[::8]]
    mean = -10 * math.log10(sum(10 ** (-d / 10) for d in at) / len(at))
    assert mean == pytest.approx(cast_error(cast).sqnr, abs=0.5)  # magnitudes are not spread over an octave evenly


def test_the_law_rises_with_bits_and_falls_with_crest_for_integers():
    eight, four = (gaussian_blocks(nc.cast(f"{n}/1x32/fp32"), [1.5, 3.0]) for n in ("int8", "int4"))
    assert eight[0][1] > eight[1][1] > four[0][1] > four[1][1]


def test_an_unsigned_format_keeps_of_magnitudes_what_its_signed_twin_keeps_of_numbers():
    ends = [1.5, 3.0, 6.0]
    assert gaussian_blocks(nc.cast("ue4m3"), ends) == gaussian_blocks(nc.cast("e4m3fn"), ends)


def test_the_report_of_any_torch_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.LayerNorm(16), nn.Linear(40, 8))
    found = against(named(model), {"mxint8": nc.cast("mxint8"), "mxfp8": nc.cast("mxfp8")})
    assert [row["name"] for row in found["tensors"]] == ["0.weight", "2.weight"]
    assert [name for name, _ in found["passed_over"]] == ["0.bias", "1.weight", "1.bias", "2.bias"]
    row = found["tensors"][1]
    assert row["shape"] == [8, 40] and row["crest"]["median"] > 1
    assert row["sqnr_db"]["mxint8"]["as given"] == row["sqnr_db"]["mxint8"]["1x32"] > row["sqnr_db"]["mxfp8"]["1x32"]


def test_pooled_is_the_sum_of_signals_over_the_sum_of_noises():
    a, b = torch.randn(8, 64), 100 * torch.randn(4, 32)
    found = against([("a", a), ("b", b)], {"int8": nc.cast("int8/1x32/fp32")})
    error = [(nc.cast("int8/1x32/fp32").apply(t).double() - t.double()).square().sum() for t in (a, b)]
    expected = 10 * torch.log10((a.double().square().sum() + b.double().square().sum()) / sum(error))
    assert found["pooled"]["int8"]["1x32"] == pytest.approx(float(expected), abs=1e-9)


def test_what_cannot_be_judged_is_named():
    with pytest.raises(InputError, match=r"layer\.weight"):
        against([("layer.weight", torch.full((2, 2), math.nan))], {"int8": nc.cast("int8")})
    with pytest.raises(InputError, match="no matrix among 1"):
        against([("bias", torch.ones(3))], {"int8": nc.cast("int8")})

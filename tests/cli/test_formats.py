"""`narrowcast formats`, as a user and as a program sees it."""

import json
import math

import pytest
import torch

import narrowcast as nc
from narrowcast.analysis.format_error import cast_error, format_error, normal_quantiles
from narrowcast.cli import run


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert run(["formats", *args]) == 0
    return capsys.readouterr().out


def as_json(capsys: pytest.CaptureFixture[str], *args: str) -> dict:
    return json.loads(shown(capsys, *args, "--json"))


def test_the_list_has_every_format_and_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys)
    assert [row["name"] for row in found["formats"]] == list(nc.formats())
    assert {row["name"]: row["spelling"] for row in found["presets"]} == {n: str(nc.cast(n)) for n in nc.PRESETS}
    text = shown(capsys)
    assert all(name in text for name in [*nc.formats(), *nc.PRESETS])


def test_bits_per_element_count_the_scales(capsys: pytest.CaptureFixture[str]) -> None:
    bits = {row["name"]: row["bits_per_element"] for row in as_json(capsys)["presets"]}
    assert bits["mxfp4"] == 4.25
    assert bits["nvfp4"] == pytest.approx(4.5, abs=1e-4)


def test_the_facts_of_e4m3fn_are_those_of_the_standard(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = as_json(capsys, "e4m3fn")["formats"]
    assert (row["sign"], row["exponent"], row["mantissa"], row["specials"]) == (1, 4, 3, "nan")
    assert (row["max"], row["smallest_normal"], row["smallest"]) == (448, 2**-6, 2**-9)
    assert len(row["values"]) == 253


def test_the_value_table_prints_every_magnitude(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "e2m1fn")
    assert "0  0.5    1  1.5    2    3    4    6" in text
    assert "15 finite, each with either sign" in text


def test_an_asymmetric_format_prints_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    assert "-4  -3  -2  -1   0   1   2   3" in shown(capsys, "int3_full")


def test_several_are_compared_best_first(capsys: pytest.CaptureFixture[str]) -> None:
    tail = shown(capsys, "mxfp4", "e4m3fn", "nvfp4").splitlines()[-3:]
    assert [line.split()[0] for line in tail] == ["e4m3fn", "nvfp4", "mxfp4"]


def test_an_alias_and_a_spelling_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    alias, spelled = as_json(capsys, "bf16", "e2m1fn/1x32/e8m0/stochastic")["formats"]
    assert alias["name"] == "bfloat16"
    assert spelled["spelling"] == "e2m1fn/1x32/e8m0/stochastic"


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


def test_quantiles_have_the_moments_of_the_normal() -> None:
    x = normal_quantiles()
    assert float(x.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(x.square().mean()) == pytest.approx(1.0, abs=1e-4)


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

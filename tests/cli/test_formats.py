"""`narrowcast formats`, as a user and as a program sees it."""

import json

import pytest

import narrowcast as nc
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

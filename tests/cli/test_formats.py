"""`narrowcast formats`, as a user and as a program sees it."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import narrowcast as nc
from narrowcast.cli import run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages go to runs/formats of the working folder."""
    monkeypatch.chdir(tmp_path)


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
    assert all(name in text for name in [*nc.formats(), *nc.PRESETS, *nc.roundings()])


def test_the_list_says_how_to_name_the_formats_it_leaves_out(capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys)
    assert all(nc.format(example) for row in found["families"] for example in row["examples"])
    assert found["roundings"] == list(nc.roundings())
    text = shown(capsys)
    assert all(row["what"] in text for row in found["families"])


@pytest.mark.parametrize("name", ["e3m3", "binary8p3", "q3.12_full", "nvint4", "bfp8", "int4-g128"])
def test_formats_and_casts_beyond_the_catalogue_are_shown(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = as_json(capsys, name)["formats"]
    assert row["error"]["sqnr_db"] > 0


def test_an_unsigned_format_has_its_page_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert "page: " in shown(capsys, "ue4m3")


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
    tail = shown(capsys, "mxfp4", "e4m3fn", "nvfp4").splitlines()[-4:-1]
    assert [line.split()[0] for line in tail] == ["e4m3fn", "nvfp4", "mxfp4"]


def test_an_alias_and_a_spelling_are_understood(capsys: pytest.CaptureFixture[str]) -> None:
    alias, spelled = as_json(capsys, "bf16", "e2m1fn/1x32/e8m0/stochastic")["formats"]
    assert alias["name"] == "bfloat16"
    assert spelled["spelling"] == "e2m1fn/1x32/e8m0/stochastic"


def test_sqnr_is_told_by_distribution_and_tile(capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = as_json(capsys, "mxfp4")["formats"]
    assert list(row["sqnr_db"]) == ["normal", "laplace", "student5"]
    assert list(row["sqnr_db"]["normal"]) == ["as given", "tensor", "row", "1x128", "1x64", "1x32", "1x16"]
    assert row["sqnr_db"]["normal"]["as given"] == row["sqnr_db"]["normal"]["1x32"] == row["error"]["sqnr_db"]
    assert row["reach"] == {"magnitudes": 7, "binades": math.log2(12), "decibels": 20 * math.log10(12), "finest": 0.25}


def test_an_alias_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["name"] for row in as_json(capsys, "bf16", "bfloat16")["formats"]] == ["bfloat16"]


def test_a_file_is_judged_and_a_page_written(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    save_file({"a.weight": torch.randn(8, 64), "a.bias": torch.ones(8)}, "m.safetensors")
    found = as_json(capsys, "mxint8", "e4m3fn", "--against", "m.safetensors")["against"]
    assert found["passed_over"] == [["a.bias", "1 axis: a bias or a norm, no matrix"]]
    assert found["compared"] == {"mxint8": "as given", "e4m3fn": "row"}
    assert found["pooled"]["mxint8"]["1x32"] == found["tensors"][0]["sqnr_db"]["mxint8"]["as given"]
    assert not (tmp_path / "runs").exists()  # --json writes no page unless told where
    text = shown(capsys, "mxint8", "--against", "m.safetensors", "--out", "pages")
    assert "1 matrix, 1 other tensor passed over" in text and "page: pages/formats.html" in text
    assert "On m.safetensors" in (tmp_path / "pages/formats.html").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--against", "x"], "need formats to judge"), (["--out", "x"], "need formats to judge"),
        (["mxfp4", "--against", "none.safetensors"], "none.safetensors: no such file"), (["mxfp4", "mxfp5"], "nearest: mxfp"),
    ],
)  # fmt: skip
def test_bad_input_writes_nothing(args, message, capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    assert run(["formats", *args]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

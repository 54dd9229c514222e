"""`narrowcast recipes`, as a user and as a program sees it."""

import json

import pytest

import narrowcast as nc
from narrowcast.cli import run

pytestmark = pytest.mark.usefixtures("wide_terminal")


def shown(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert run(["recipes", *args]) == 0
    return capsys.readouterr().out


def test_the_list_has_every_recipe_with_its_paper(capsys: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(shown(capsys, "--json"))["recipes"]
    assert [(row["name"], row["paper"]) for row in rows] == [(r.name, r.paper) for r in nc.recipes().values()]
    text = shown(capsys)
    assert all(name in text for name in nc.recipes())


@pytest.mark.parametrize("name", [n for n, r in nc.recipes().items() if r.linear])
def test_six_operands_spelled_as_the_recipe_has_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    spec = nc.recipe(name).linear
    assert spec is not None
    gemms = json.loads(shown(capsys, name, "--json"))["gemms"]
    for label in nc.OPERANDS:
        gemm, tensor = label.split(".")
        found = gemms[gemm]["operands"][tensor]
        assert found["operand"] == str(spec.operand(label))
        assert nc.cast(found["cast"]) == spec.cast(label)
    text = shown(capsys, name)
    assert all(str(spec.operand(label)) in text for label in nc.OPERANDS)


def test_transform_output_and_loss_scale_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert "hadamard64-fresh" in shown(capsys, "mxfp4-rht-sr")
    assert "starts at 65536, x2 after 2000 good steps" in shown(capsys, "fp16")
    assert json.loads(shown(capsys, "fp16", "--json"))["loss_scale"]["initial"] == 65536.0


def test_plain_float32_has_no_gemms_to_show(capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(shown(capsys, "fp32", "--json"))["gemms"] == {}
    assert "everything, in float32" in shown(capsys, "fp32")

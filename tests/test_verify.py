"""``narrowcast verify``: what it accepts, what it counts as a failure, and what it says where there is no GPU."""

import json

import pytest
import torch

from narrowcast import backend, verify
from narrowcast.cli import run
from narrowcast.kernels.plan import Plan
from narrowcast.ops import Gemm
from narrowcast.quantize import QTensor, cast

E4 = ("fp8", "e4m3fn", "e4m3fn")
FAST, SPLIT = Plan(*E4, "tensor", "tensor", True), Plan(*E4, "row", "row")


@pytest.fixture
def plainly(monkeypatch):
    """Let `Cast.quantize` stand for the kernels, so that nothing is interpreted."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backend, "narrow", lambda cast, *rest: cast.quantize(*rest))
    monkeypatch.setattr(backend, "narrow_both", lambda *_: None)


@pytest.mark.parametrize("recipe", ["fp8-delayed", "fp8-block", "mxfp4-rht-sr", "nvfp4"])
def test_the_definition_verifies_against_itself(plainly, recipe):
    (found,) = verify.verify([recipe], torch.device("cpu"), shapes=verify.SMALL)
    assert found.ok, found.first
    casts = {"fp8-delayed": 3, "fp8-block": 6, "mxfp4-rht-sr": 6, "nvfp4": 5}[recipe]
    assert found.codes == (casts + 6) * len(verify.INPUTS) * 2
    assert found.products == 3 * len(verify.INPUTS) * 2
    assert 0 < found.worst < 1 or recipe != "fp8-delayed"


def test_one_wrong_code_and_one_wrong_product_are_found(plainly, monkeypatch, capsys):
    honest = backend.narrow

    def off_by_one(cast, x, *rest):
        q: QTensor = honest(cast, x, *rest)
        q.codes.view(-1)[0] ^= 1
        return q

    monkeypatch.setattr(backend, "narrow", off_by_one)
    (found,) = verify.verify(["fp8-rowwise"], torch.device("cpu"), shapes=verify.SMALL)
    assert found.differing > 0
    assert "codes: 1 differ, first at (0, 0)" in found.first
    monkeypatch.setattr(backend, "narrow", honest)
    gemm = backend.gemm
    monkeypatch.setattr(backend, "gemm", lambda *a: gemm(*a) * 1.5)
    assert run(["verify", "--quick", "--recipes", "fp8-rowwise", "--device", "cpu"]) == 1
    assert "recipe fp8-rowwise: fwd of normal" in capsys.readouterr().err


def test_json_and_what_is_emulated(plainly, capsys):
    assert run(["verify", "--quick", "--recipes", "int8-block,bf16", "--device", "cpu", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["recipes"]
    assert [r["recipe"] for r in rows] == ["int8-block", "bf16"]
    assert rows[0]["codes"] == 0
    assert rows[0]["kernels"]["fwd"].startswith("emulated (int8 is not exact in FP8")
    assert rows[1]["ok"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to verify: device cpu has no narrow tensor cores; TRITON_INTERPRET=1 interprets the kernels"),
        (["--device", "tpu"], "--device tpu: expected auto, cpu or cuda"),
    ],
)
def test_bad_input(arguments, message, monkeypatch, capsys):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(["verify", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_bounds_hold_for_the_models_of_the_accumulator():
    """What Hopper's sums lose, by their model, stays below the bound; without promotion both grow with K."""
    torch.manual_seed(0)
    for plan in (FAST, SPLIT, Plan(*E4, "1x128", "1x128")):
        for depth in (128, 512):
            a, b = (cast(f"e4m3fn/{plan.tile_a}/fp32").quantize(torch.randn(8, depth)) for _ in "ab")
            left, right = (q.dequantize().double() for q in (a, b))
            limit = verify.bound(plan, depth) * (left.abs() @ right.abs().mT)
            for model in verify.products(a, b, plan):
                error = (model.double() - left @ right.mT).abs()
                assert (error <= limit).all()
                assert error.max() > 0
    assert verify.bound(FAST, 4096) > verify.bound(SPLIT, 4096) > verify.bound(Plan("bfloat16", "", ""), 4096)
    assert Gemm(a.cast, b.cast).accumulator != FAST.accumulator

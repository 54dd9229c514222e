"""``narrowcast verify``: what it accepts, what it counts as a failure, and what it says where there is no GPU."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from narrowcast import backend, passes, verify
from narrowcast.accumulate import HOPPER_FP16, Codes
from narrowcast.cli import run
from narrowcast.cli.common import console
from narrowcast.cli.verify import _bounds
from narrowcast.kernels.plan import BLOCKS, Plan
from narrowcast.optim import NarrowOptimizer
from narrowcast.quantize import QTensor, cast
from narrowcast.verify import states
from narrowcast.verify.sums import KNOWN, ORDERS, in_order, operands

RESULTS = Path(__file__).parent.parent / "bench" / "results"
E4 = ("fp8", "e4m3fn", "e4m3fn")
FAST, SPLIT = Plan(*E4, "tensor", "tensor", True), Plan(*E4, "row", "row")


class Plain:
    """The definition of passes in the place of kernels."""

    def __getattr__(self, name):
        return getattr(passes, name)

    def against(self, *_):
        return None


@pytest.fixture
def plainly(monkeypatch):
    """Let `Cast.quantize` stand for the kernels, so that nothing is interpreted."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(backend, "narrow", lambda cast, *rest: cast.quantize(*rest))
    monkeypatch.setattr(backend, "narrow_both", lambda *_, **__: None)
    monkeypatch.setattr(backend, "passes", lambda _: Plain())
    monkeypatch.setattr(backend, "gates", lambda _: passes.saved_gradients)


@pytest.mark.parametrize("recipe", ["fp8-delayed", "fp8-block", "mxfp4-rht-sr", "nvfp4"])
def test_the_definition_verifies_against_itself(plainly, recipe):
    (found,) = verify.verify([recipe], torch.device("cpu"), shapes=verify.SMALL)
    assert found.ok, found.first
    casts = {"fp8-delayed": 3, "fp8-block": 6, "mxfp4-rht-sr": 6, "nvfp4": 5}[recipe]
    assert found.codes == (casts + 6) * len(verify.INPUTS) * 3
    assert found.products == 3 * len(verify.INPUTS) * 3
    assert found.written == 2 * found.products
    assert found.rounded == found.roundings > 0
    assert found.fused == 9 * len(verify.INPUTS) * (recipe in ("fp8-delayed", "fp8-block"))
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


def test_a_wrong_rounding_and_a_wrong_pass_are_found(plainly, monkeypatch):
    gemm, shapes = backend.gemm, verify.SMALL

    def rounded_up(a, b, plan, out):
        return (
            torch.nextafter(gemm(a, b, plan, out), torch.tensor(torch.inf, dtype=out))
            if out == torch.float16
            else gemm(a, b, plan, out)
        )

    monkeypatch.setattr(backend, "gemm", rounded_up)
    (found,) = verify.verify(["fp8-rowwise"], torch.device("cpu"), shapes=shapes)
    assert found.failed == 0
    assert found.written / 2 == found.misrounded == found.products
    assert "fwd of normal bfloat16 [24, 48] by [16, 48], written in float16: " in found.first
    monkeypatch.setattr(backend, "gemm", gemm)

    def wrong(*rest, **how):
        one, two = passes.gelu_both(*rest, **how)
        one.codes[0, 0] ^= 1
        return one, two

    monkeypatch.setattr(Plain, "gelu_both", staticmethod(wrong), raising=False)
    (found,) = verify.verify(["fp8-static"], torch.device("cpu"), shapes=shapes)
    assert (found.fused, found.fused_differing) == (9 * 7, 7)
    assert found.first.startswith("gelu by e4m3fn of normal bfloat16 [24, 48]: codes: 1 differ, first at (0, 0)")


def test_an_optimizer_step_that_differs_is_found(monkeypatch):
    from narrowcast.optim import narrow

    honest, device = narrow.plain_step, torch.device("cpu")
    monkeypatch.setattr(
        states, "NarrowOptimizer", lambda *a, backend, **how: NarrowOptimizer(*a, backend="emulate", **how)
    )
    assert verify.verify_optimizer("fp8-adam-blocks", device, quick=True).ok
    calls = count()

    def other(chosen, work, numbers, seed, step):
        honest(chosen, work, numbers, seed, step)
        if next(calls) == 0:
            work.state["m.codes"][5] ^= 1

    monkeypatch.setattr(narrow, "plain_step", other)
    found = verify.verify_optimizer("fp8-adam-blocks", device, quick=True)
    assert found.differing == 1
    assert found.first.startswith("m.codes of parameter 0 of normal bfloat16 after step 1: 1 differ, first at (5,): ")


def test_side_by_side_is_one_after_the_other(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done: list[str] = []
    asked = (["int8-block", "fp32"], [], torch.device("cpu"))  # what has no kernel: the interpreter is slow
    found, _ = verify.verify_all(*asked, quick=True, processes=2, note=done.append)
    assert sorted(done) == ["fp32", "int8-block"]
    assert [f.recipe for f in found] == ["int8-block"]
    assert found == verify.verify_all(*asked, quick=True)[0]


@pytest.mark.parametrize(("capability", "said"), [((9, 0), False), ((10, 0), True), ((8, 9), True)])
def test_off_hopper_the_bounds_are_said_to_be_hoppers(capability, said, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    line = _bounds(torch.device("cuda"))
    assert line.startswith("Hopper's (sm_90)")
    assert ("this is sm_{}{}".format(*capability) in line) is said


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_two_failures_are_told_in_lines_that_fit(plainly, monkeypatch, capsys, columns):
    monkeypatch.setattr(console, "width", columns)
    gemm = backend.gemm
    monkeypatch.setattr(backend, "gemm", lambda *a: gemm(*a) * 1.5)
    assert run(["verify", "--quick", "--recipes", "bf16,fp16,int8-block", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= columns
    rows = [line.split() for line in out.splitlines() if line.startswith(("bf16 ", "fp16 ", "int8-block "))]
    assert [row[-1] for row in rows[:3]] == ["FAILED", "FAILED", "emulated"]
    assert [row[:2] for row in rows[3:]] == [["bf16", "FAILED:"], ["fp16", "FAILED:"]]
    assert "bf16 FAILED: fwd of normal bfloat16 [24, 48] by [16, 48]:" in out
    assert err.strip().endswith("; also fp16")


def test_json_file_and_what_is_emulated(plainly, capsys, tmp_path):
    asked = ["verify", "--quick", "--recipes", "int8-block,bf16", "--device", "cpu", "--out", str(tmp_path)]
    assert run([*asked, "--json"]) == 0
    payload = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "verify-cpu.json").read_text()) == payload
    assert run([*asked[:-1], str(tmp_path / "verify-cpu.json")]) == 2
    assert "verify-cpu.json: is a file, expected a folder or nothing" in capsys.readouterr().err
    rows = payload["recipes"]
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


CAST = {
    "": "{}",
    "tensor": "{}/tensor/fp32",
    "row": "{}/row/fp32",
    "1x128": "{}/1x128/fp32",
    "128x128": "{}/128x128/fp32",
}
PLANS = [
    FAST,
    SPLIT,
    Plan("fp8", "e5m2", "e4m3fn", "tensor", "tensor"),
    Plan(*E4, "1x128", "128x128"),
    Plan(*E4, "1x128", "1x128"),
    Plan("bfloat16", "bfloat16", "bfloat16"),
    Plan("float16", "float16", "float16"),
]


def quantized(plan: Plan, x: torch.Tensor, w: torch.Tensor) -> tuple[QTensor, QTensor]:
    return cast(CAST[plan.tile_a].format(plan.a)).quantize(x), cast(CAST[plan.tile_b].format(plan.b)).quantize(w)


def exact(a: QTensor, b: QTensor) -> torch.Tensor:
    left, right = (replace(q, dtype=torch.float32).dequantize().double() for q in (a, b))
    return left @ right.mT


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("kind", ["normal", "outliers", "many binades", "zero rows"])
def test_what_the_models_of_the_accumulator_lose_is_a_good_part_of_the_bound(plan, kind):
    """By the model, which float16 dot products measured on an H100 bear out (`accumulate.Aligned`)."""
    torch.manual_seed(0)
    x, w = (verify.INPUTS[kind](torch.randn(rows, 128)) for rows in (24, 128))
    a, b = quantized(plan, x, w)
    want, limit = exact(a, b), verify.bound(a, b, plan)
    finite = want.isfinite()
    share = ((verify.product(a, b, plan).double() - want).abs() / limit)[finite]
    assert 0.02 < share.max() <= 1


def test_a_subnormal_operand_pushes_other_products_out_of_the_sum():
    """2**-24 * 2**15 counts as 2**(-14 + 15), so what lies below 2**-24 is cut: 2**-16 of this sum, 2 float32 units."""
    plan = Plan("float16", "float16", "float16")
    a, b = quantized(plan, torch.tensor([[2.0**-24, 2.0**-12]]), torch.tensor([[2.0**15, 2.0**-13]]))
    model = verify.product(a, b, plan)
    assert (float(exact(a, b)), float(model)) == (2.0**-9 + 2.0**-25, 2.0**-9)
    assert 2.0**-25 <= float(verify.bound(a, b, plan)) < 2.0**-22


def test_a_model_with_every_order_of_scales():
    """Where one float32 product of both scales multiplies each sum, the orders' table says what `accumulate` does."""
    torch.manual_seed(0)
    plan = Plan(*E4, "1x128", "128x128")
    a, b = quantized(plan, torch.randn(16, 384), torch.randn(128, 384))
    found = [in_order(a, b, plan, order, each=True) for order in ORDERS]
    assert torch.equal(found[0], plan.accumulator.matmul(*operands(a, b, plan)))
    for i, one in enumerate(found):
        assert (one - found[0]).abs().max() < 1e-4
        assert all(not torch.equal(one, other) for other in found[:i])


def test_the_model_is_what_was_measured_on_an_h100():
    """Every order of scales was tried in one run; 16-bit sums, where the library does not split K; a subnormal operand."""
    found = json.loads((RESULTS / "accumulator-cuda.json").read_text())
    assert "H100" in found["machine"]["gpu"]
    for key, shares in found["scaled"].items():
        tiles = tuple(side.split(",")[0].split("/")[1] for side in key.split(" x "))
        place = "each 128" if tiles[0] in BLOCKS else "at the end"
        assert shares[f"{KNOWN.get(tiles, 'total + a (s t), fused')}, {place}"] == 1, key
        assert sum(share == 1 for share in shares.values()) == 1 or "K 128" in key
    for table in found["16-bit"].values():
        assert {size for size, shares in table.items() if shares["hopper-fp16"] < 1} == {"128x128x4096"}
    for j, (what, rest) in zip(range(20, 37), found["subnormal float16"].items(), strict=False):
        a, b = (Codes(torch.tensor([x]), None, 2.0**-14) for x in ([2.0**-24, 2.0**-12], [2.0**15, 2.0 ** (12 - j)]))
        assert float(HOPPER_FP16.matmul(a, b)) - 2.0**-9 == rest, what

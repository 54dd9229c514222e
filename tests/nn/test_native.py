"""Gemms on tensor cores: which, how, and why not; what their twins say. Layers run in Triton's interpreter."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import narrowcast as nc
from narrowcast.backend import choose
from narrowcast.errors import InputError
from narrowcast.kernels.gemm import gemm, transposed
from narrowcast.kernels.plan import Plan, carrier, plan, significant
from narrowcast.nn.native import choices
from narrowcast.ops import Gemm
from narrowcast.quantize import cast

HERE = Path(__file__).parent
CPU = torch.device("cpu")


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (it is for Linux only)")
def test_layers_in_the_interpreter():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    arguments = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", str(HERE / "native_layers.py")]
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=HERE.parents[1]
    )
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout


#: recipe: what runs its three gemms
PLANS = {
    "bf16": ("bfloat16 mm of exactly decoded operands",) * 3,
    "fp16": ("float16 mm of exactly decoded operands",) * 3,
    "fp8-delayed": (
        "scaled_mm e4m3fn x e4m3fn, tensor scales, split accumulation",
        *("scaled_mm e5m2 x e4m3fn, tensor scales, split accumulation",) * 2,
    ),
    "fp8-delayed@hopper-fp8": (
        "scaled_mm e4m3fn x e4m3fn, tensor scales, fast accumulation",
        *("scaled_mm e5m2 x e4m3fn, tensor scales, fast accumulation",) * 2,
    ),
    "fp8-rowwise": ("scaled_mm e4m3fn x e4m3fn, row scales, split accumulation",) * 3,
    "fp8-static@hopper-fp8": (
        "scaled_mm e4m3fn x e4m3fn, tensor scales, fast accumulation",
        *("scaled_mm e5m2 x e4m3fn, tensor scales, fast accumulation",) * 2,
    ),
    "fp8-rowwise@hopper-fp8": ("scaled_mm e4m3fn x e4m3fn, row scales, fast accumulation",) * 3,
    "fp8-hybrid": (
        *("scaled_mm e4m3fn x e4m3fn, 1x128 and 128x128 scales, split accumulation",) * 2,
        "scaled_mm e4m3fn x e4m3fn, 1x128 scales, split accumulation",
    ),
    "mxfp8": ("bfloat16 mm of exactly decoded operands",) * 3,
    "nvfp4": ("bfloat16 mm of exactly decoded operands",) * 3,
    "int8-block": (
        "int8 is not exact in FP8; int8 under 32x32+pad fp32 scales is not exact in bfloat16",
        "operand dgrad.w reuses codes of fwd, which is emulated",
        "operand wgrad.g reuses codes of dgrad, which is emulated",
    ),
}


@pytest.mark.parametrize("recipe", PLANS)
def test_plans_of_the_recipes(recipe, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    made = choices(nc.recipe(recipe).linear, "auto", CPU, "layer")
    assert tuple(c.kernel if c.plan else c.why for c in made) == PLANS[recipe]


REASONS = {
    ("e5m2/row/fp32", "e5m2/row/fp32", "fp32"): "no e5m2 by e5m2",
    ("e4m3fn/128x128/fp32", "e4m3fn/128x128/fp32", "fp32"): "no product of 128x128 and 128x128",
    ("e4m3fn/1x128/fp32", "e4m3fn/tensor/fp32", "fp32"): "no product of 1x128 and tensor",
    ("e4m3fn/1x64/fp32", "e4m3fn/1x64/fp32", "fp32"): "no scales per 1x64",
    ("e5m2/1x128/fp32", "e4m3fn/1x128/fp32", "fp32"): "blocks of e4m3fn only",
    ("e4m3fn/1x128/fp32", "e4m3fn/1x128/fp32", "hopper-fp8"): "promotes the sums of every block",
    ("e4m3fn/row/fp32", "e4m3fn/row/fp32", "exact"): "no tensor core sums by exact",
    ("float32", "bfloat16", "fp32"): "float32 under tensor one scales is not exact in bfloat16",
    ("int8/1x32/fp32", "int8/1x32/fp32", "fp32"): "int8 is not exact in FP8; int8 under 1x32 fp32",
    ("posit8_1/row/fp32", "posit8_1", "fp32"): "posit8_1 is not exact in FP8; posit8_1 under row fp32",
}


@pytest.mark.parametrize("case", REASONS, ids=lambda c: " ".join(c))
def test_a_gemm_without_a_plan_says_why(case):
    found = plan(Gemm(cast(case[0]), cast(case[1]), accumulator=nc.accumulator(case[2])))
    assert isinstance(found, str)
    assert REASONS[case] in found


def test_accumulators_of_the_tensor_cores():
    row = cast("e4m3fn/row/fp32")
    fast, split = (
        plan(Gemm(row, row, accumulator=nc.accumulator(a))) for a in ("hopper-fp8", "hopper-fp8/every128/fp32")
    )
    assert isinstance(fast, Plan)
    assert isinstance(split, Plan)
    assert (fast.fast, split.fast) == (True, False)
    assert split == plan(Gemm(row, row))


def test_what_is_exact_where():
    """Values of 4 and 6 bits lie in e4m3fn; NVFP4's products of 2 and 4 significant bits have 6 (0.5 * 2**-6 upwards)."""
    exact = ("e2m1fn", "e2m3fn", "e3m2fn", "int4", "e4m3fn")
    assert {f: carrier(nc.format(f)) for f in exact} == dict.fromkeys(exact, "e4m3fn")
    assert carrier(nc.format("e5m2")) == "e5m2"
    assert [carrier(nc.format(f)) for f in ("int8", "nf4", "e4m3", "e3m4", "bfloat16")] == [None] * 5
    bits = {"nvfp4": 6, "mxfp4": 2, "mxfp8_e4m3": 4, "mxint8": 7, "bfloat16": 8, "e4m3fn/row/fp32": 0}
    assert {name: significant(cast(name)) for name in bits} == bits


def test_a_machine_without_tensor_cores_refuses_by_name(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    row = cast("e4m3fn/row/fp32")
    assert choose("auto", Gemm(row, row), CPU, "x").why == "device cpu has no narrow tensor cores"
    with pytest.raises(InputError, match="x: backend 'native' cannot run here: device cpu has no narrow tensor cores"):
        choose("native", Gemm(row, row), CPU, "x")


#: casts of a and b, and whether b is turned first
PRODUCTS = [
    ("e4m3fn/tensor/fp32", "e5m2/tensor/fp32"),
    ("e4m3fn/row/fp32", "e4m3fn/tensor/fp32"),
    ("e4m3fn/1x128+pad/fp32", "e4m3fn/128x128+pad/e8m0-ceil"),
    ("e2m1fn/row/fp32", "int4/row/fp32"),
    ("nvfp4", "e2m1fn/1x16/e4m3fn+fp32"),
    ("mxfp4", "e2m1fn/1x32/e8m0-four-thirds"),
    ("bfloat16", "mxint8"),
]


@pytest.mark.parametrize("case", PRODUCTS, ids=" ".join)
def test_products_are_float64s_of_the_decoded_operands(case):
    torch.manual_seed(0)
    a, b = (cast(c).quantize(torch.randn(rows, 160)) for c, rows in zip(case, (24, 40), strict=True))
    how = plan(Gemm(a.cast, b.cast))
    assert isinstance(how, Plan)
    want = 0.5 * a.dequantize().double() @ b.dequantize().double().mT
    found = gemm(a, b, how, torch.float32, alpha=0.5)
    assert float((found - want).abs().max()) < 1e-5 * float(want.abs().max())


@pytest.mark.parametrize("spelling", ["e4m3fn/tensor/fp32", "e2m1fn/16x16/e4m3fn+fp32", "int4/32x32+pad/fp32"])
def test_turned_codes_decode_to_the_transpose(spelling):
    q = cast(spelling).quantize(torch.randn(48, 32))
    assert torch.equal(transposed(q).dequantize(), q.dequantize().mT)

"""Naive MXFP4: all six operands E2M1 in blocks of 32, OCP's floor rule, nearest-even. The arm that should lose."""

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import Recipe

BLOCK = cast("e2m1fn/1x32+pad/e8m0")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="mxfp4",
    summary="naive: all six operands in MXFP4, nearest-even, OCP floor rule",
    paper="OCP 2023, Microscaling Formats (MX) v1.0; baseline of Tseng et al. 2025",
    linear=LinearSpec(fwd=Gemm(BLOCK, BLOCK, out=OUT), dgrad=Gemm(BLOCK, BLOCK, out=OUT), wgrad=Gemm(BLOCK, BLOCK)),
)

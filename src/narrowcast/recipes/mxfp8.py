"""MXFP8: E4M3 in blocks of 32 under a power-of-two scale that is rounded up."""

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import Recipe

BLOCK = cast("e4m3fn/1x32+pad/e8m0-ceil")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="mxfp8",
    summary="E4M3 in blocks of 32, power-of-two scales rounded up",
    paper="Mishra et al. 2025, Recipes for Pre-training LLMs with MXFP8",
    linear=LinearSpec(fwd=Gemm(BLOCK, BLOCK, out=OUT), dgrad=Gemm(BLOCK, BLOCK, out=OUT), wgrad=Gemm(BLOCK, BLOCK)),
)

"""FP8 with one scale per tensor, taken from the maxima of the last 16 steps."""

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import REUSE, Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import Recipe

FORWARD = cast("e4m3fn/tensor/fp32-delayed16")
GRADIENT = cast("e5m2/tensor/fp32-delayed16")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="fp8-delayed",
    summary="E4M3 forward, E5M2 gradients, one delayed scale per tensor",
    paper="Micikevicius et al. 2022, FP8 Formats for Deep Learning",
    linear=LinearSpec(
        fwd=Gemm(FORWARD, FORWARD, out=OUT), dgrad=Gemm(GRADIENT, REUSE, out=OUT), wgrad=Gemm(REUSE, REUSE)
    ),
)

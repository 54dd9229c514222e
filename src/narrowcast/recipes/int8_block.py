"""INT8 in 32x32 blocks (Jetfire): a square block has one set of codes for both orientations."""

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import REUSE, Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import Recipe

SQUARE = cast("int8/32x32+pad/fp32")
DITHERED = cast("int8/32x32+pad/fp32/stochastic")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="int8-block",
    summary="INT8 in 32x32 blocks, stochastic gradients, codes reused both ways",
    paper="Xi et al. 2024, Jetfire: INT8 data flow and per-block quantization",
    linear=LinearSpec(
        fwd=Gemm(SQUARE, SQUARE, out=OUT), dgrad=Gemm(DITHERED, REUSE, out=OUT), wgrad=Gemm(REUSE, REUSE)
    ),
)

"""InfiR2's FP8: DeepSeek-V3's tiles under powers of two, for continued pre-training and fine-tuning.

A power of two is rounded up, so nothing saturates and up to a binade of E4M3's range goes unused; both orientations
are cast from the wide tensor. The paper's files hold these scales in float32: the same numbers.
"""

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import Recipe

TILE = cast("e4m3fn/1x128+pad/e8m0-ceil")
SQUARE = cast("e4m3fn/128x128+pad/e8m0-ceil")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="fp8-hybrid",
    summary="E4M3, 1x128 tiles, 128x128 for weights, power-of-two scales rounded up",
    paper="InfiX 2025, InfiR2: A Comprehensive FP8 Training Recipe",
    linear=LinearSpec(fwd=Gemm(TILE, SQUARE, out=OUT), dgrad=Gemm(TILE, SQUARE, out=OUT), wgrad=Gemm(TILE, TILE)),
)

"""DeepSeek-V3's FP8: E4M3 everywhere, 1x128 tiles for activations and gradients, 128x128 for weights.

Both orientations are cast from the wide tensor (as TransformerEngine does); ragged edges are padded with zeros.
"""

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import Recipe

TILE = cast("e4m3fn/1x128+pad/fp32")
SQUARE = cast("e4m3fn/128x128+pad/fp32")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="fp8-block",
    summary="E4M3 everywhere, 1x128 tiles, 128x128 for weights",
    paper="DeepSeek-AI 2024, DeepSeek-V3 Technical Report, section 3.3",
    linear=LinearSpec(fwd=Gemm(TILE, SQUARE, out=OUT), dgrad=Gemm(TILE, SQUARE, out=OUT), wgrad=Gemm(TILE, TILE)),
)

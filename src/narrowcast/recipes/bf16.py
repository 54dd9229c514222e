"""bfloat16 mixed precision: every gemm operand and output in bfloat16, float32 accumulation and master weights."""

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import Recipe

BF16 = cast("bfloat16")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="bf16",
    summary="bfloat16 gemms, float32 accumulation and master weights",
    paper="Kalamkar et al. 2019, A Study of BFLOAT16 for Deep Learning Training",
    linear=LinearSpec(fwd=Gemm(BF16, BF16, out=OUT), dgrad=Gemm(BF16, BF16, out=OUT), wgrad=Gemm(BF16, BF16)),
)

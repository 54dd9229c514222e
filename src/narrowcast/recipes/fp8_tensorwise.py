"""FP8 with one scale per tensor, from its current maximum (FP8-AMAX; torchao's "tensorwise")."""

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import REUSE, Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import Recipe

FORWARD = cast("e4m3fn/tensor/fp32")
GRADIENT = cast("e5m2/tensor/fp32")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="fp8-tensorwise",
    summary="E4M3 forward, E5M2 gradients, one current scale per tensor",
    paper="Perez et al. 2023, Training and inference of LLMs using 8-bit floating point",
    linear=LinearSpec(
        fwd=Gemm(FORWARD, FORWARD, out=OUT), dgrad=Gemm(GRADIENT, REUSE, out=OUT), wgrad=Gemm(REUSE, REUSE)
    ),
)

"""NVFP4 training: two-level scales, square weight blocks, stochastic gradients, Hadamard on wgrad only.

The paper also keeps about 15 % of the linear layers, mostly the last, in bfloat16; here all are narrowed.
"""

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import REUSE, Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import Recipe
from narrowcast.transforms import Hadamard

NEAR = cast("e2m1fn/1x16+pad/e4m3fn+fp32")
SQUARE = cast("e2m1fn/16x16+pad/e4m3fn+fp32")
DITHERED = cast("e2m1fn/1x16+pad/e4m3fn+fp32/stochastic")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="nvfp4",
    summary="NVFP4 everywhere: 16x16 weights, stochastic gradients, Hadamard in wgrad",
    paper="NVIDIA 2025, Pretraining Large Language Models with NVFP4",
    linear=LinearSpec(
        fwd=Gemm(NEAR, SQUARE, out=OUT),
        dgrad=Gemm(DITHERED, REUSE, out=OUT),
        wgrad=Gemm(DITHERED, NEAR, transform=Hadamard(16, signs="fixed")),
    ),
)

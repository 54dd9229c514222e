"""FP8 with delayed scales that survives long runs: Smooth-SwiGLU, stochastic gradients.

The paper keeps E5M2 copies of x and w for the backward pass; Hopper's library multiplies no E5M2 by E5M2, so their
E4M3 codes are used again, as in the FP8 recipe that the paper builds on. Its optimizer with FP8 moments is a choice of
its own.
"""

from narrowcast.formats import format
from narrowcast.nn.gated import Gated
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import REUSE, Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import Recipe

FORWARD = cast("e4m3fn/tensor/fp32-delayed16")
GRADIENT = cast("e5m2/tensor/fp32-delayed16/stochastic")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="fp8-smooth-swiglu",
    summary="E4M3 forward, stochastic E5M2 gradients, delayed scales, Smooth-SwiGLU",
    paper="Fishman et al. 2025, Scaling FP8 training to trillion-token LLMs",
    linear=LinearSpec(
        fwd=Gemm(FORWARD, FORWARD, out=OUT), dgrad=Gemm(GRADIENT, REUSE, out=OUT), wgrad=Gemm(REUSE, REUSE)
    ),
    changes=(Gated(smooth=True),),
)

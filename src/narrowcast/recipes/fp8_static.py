"""FP8 without any scale: weights of unit variance, products times 1/sqrt(fan_in), values clipped to the format's range.

The paper also puts a LayerNorm at the end of each branch and weighs the residual by a constant: those belong to the
model, and are left as the model has them. A loss that is a mean over tokens has gradients far below E5M2's smallest
number (98 to 100 % of them underflowed), so it is scaled before the backward pass, as in fp16.
"""

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.nn.unit import UnitVariance
from narrowcast.ops import REUSE, Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import LossScale, Recipe

FORWARD = cast("e4m3fn")
GRADIENT = cast("e5m2")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="fp8-static",
    summary="E4M3 forward, E5M2 gradients, no scales: weights of unit variance",
    paper="Narayan et al. 2025, munit Scaling: Simple and Scalable FP8 LLM Training",
    linear=LinearSpec(
        fwd=Gemm(FORWARD, FORWARD, out=OUT), dgrad=Gemm(GRADIENT, REUSE, out=OUT), wgrad=Gemm(REUSE, REUSE)
    ),
    parametrisation=UnitVariance(),
    loss_scale=LossScale(initial=4096.0),
)

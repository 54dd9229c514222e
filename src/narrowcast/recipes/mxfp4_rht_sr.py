"""MXFP4 backward made unbiased and low-variance: random Hadamard, then stochastic rounding without clipping.

Forward in bfloat16; both operands of both backward gemms are rotated with fresh signs (block 64), scaled so that
nothing saturates (the 4/3 shift) and rounded stochastically.
"""

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import Recipe
from narrowcast.transforms import Hadamard

BF16 = cast("bfloat16")
DITHERED = cast("e2m1fn/1x32+pad/e8m0-four-thirds/stochastic")
ROTATION = Hadamard(64, signs="fresh")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="mxfp4-rht-sr",
    summary="bfloat16 forward; MXFP4 backward, rotated and stochastically rounded",
    paper="Tseng et al. 2025, Training LLMs with MXFP4",
    linear=LinearSpec(
        fwd=Gemm(BF16, BF16, out=OUT),
        dgrad=Gemm(DITHERED, DITHERED, transform=ROTATION, out=OUT),
        wgrad=Gemm(DITHERED, DITHERED, transform=ROTATION),
    ),
)

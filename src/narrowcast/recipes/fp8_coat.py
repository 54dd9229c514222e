"""COAT: FP8 gemms with current tensor scales, and activations kept for the backward pass in FP8 throughout.

Linear layers keep codes by nature; inputs of norms and gated units are cast in groups of 16 under bfloat16 scales. What
follows from that is not kept but made again: codes of weights and, in compiled code, of normed inputs, of gated
products (the paper keeps these two) and of attention's output, which attention keeps wide for its own gradient. The
optimizer with expanded FP8 moments is a choice of its own.
"""

from narrowcast.formats import format
from narrowcast.nn.gated import Gated
from narrowcast.nn.norm import Norms
from narrowcast.nn.remade import Remade
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import REUSE, Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import Recipe

FORWARD = cast("e4m3fn/tensor/fp32")
GRADIENT = cast("e5m2/tensor/fp32")
GROUPS = cast("e4m3fn/1x16+pad/bfloat16")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="fp8-coat",
    summary="E4M3 forward, E5M2 gradients, tensor scales; activations saved in FP8",
    paper="Xi et al. 2025, COAT: Compressing Optimizer states and Activations for FP8 Training",
    linear=LinearSpec(
        fwd=Gemm(FORWARD, FORWARD, out=OUT),
        dgrad=Gemm(GRADIENT, REUSE, out=OUT),
        wgrad=Gemm(REUSE, REUSE),
        remade=("w",),
    ),
    changes=(Gated(saved=GROUPS), Norms(saved=GROUPS), Remade()),
)

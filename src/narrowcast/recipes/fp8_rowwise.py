"""FP8 E4M3 with one scale per row along the contraction axis of each gemm (torchao's "rowwise")."""

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import Recipe

ROW = cast("e4m3fn/row/fp32")
OUT = format("bfloat16")

RECIPE = Recipe(
    name="fp8-rowwise",
    summary="E4M3 everywhere, one scale per row of each operand",
    paper="Or et al. 2025, TorchAO: PyTorch-Native Training-to-Serving Model Optimization",
    linear=LinearSpec(fwd=Gemm(ROW, ROW, out=OUT), dgrad=Gemm(ROW, ROW, out=OUT), wgrad=Gemm(ROW, ROW)),
)

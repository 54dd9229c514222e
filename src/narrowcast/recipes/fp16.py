"""float16 mixed precision: float16 gemms, float32 master weights, dynamic loss scaling."""

from narrowcast.formats import format
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import Gemm
from narrowcast.quantize import cast
from narrowcast.recipes.recipe import LossScale, Recipe

FP16 = cast("float16")
OUT = format("float16")  # products beyond 65504 become infinite: that is what the loss scaler watches for

RECIPE = Recipe(
    name="fp16",
    summary="float16 gemms, float32 master weights, dynamic loss scaling",
    paper="Micikevicius et al. 2017, Mixed Precision Training",
    linear=LinearSpec(fwd=Gemm(FP16, FP16, out=OUT), dgrad=Gemm(FP16, FP16, out=OUT), wgrad=Gemm(FP16, FP16, out=OUT)),
    loss_scale=LossScale(),
)

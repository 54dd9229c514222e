"""The post-training recipes by name. A new recipe is one row here."""

from narrowcast.errors import InputError, nearest
from narrowcast.ptq.gptq import Solver
from narrowcast.ptq.recipe import Awq, CacheScheme, PtqRecipe, Scheme, Smooth
from narrowcast.ptq.row_search import LeastRowError
from narrowcast.ptq.search import LeastError
from narrowcast.quantize import cast
from narrowcast.transforms import Hadamard

_TOKEN_FP8 = cast("e4m3fn/row/fp32")
_TOKEN_INT8 = cast("int8/row/fp32")
_ROTATE_16, _ROTATE_32 = Hadamard(16), Hadamard(32)
_W8_FP8 = Scheme(cast("e4m3fn/row/fp32"), _TOKEN_FP8)
_W8_INT8 = Scheme(cast("int8/row/fp32"), _TOKEN_INT8)
_W4_G128, _W4_G32 = Scheme(cast("int4_full/1x128+pad/fp32")), Scheme(cast("int4_full/1x32+pad/fp32"))
_W4_ZERO_G32 = Scheme(cast("int4_full/1x32+pad/fp32-zero4"))
_MXFP4 = Scheme(cast("e2m1fn/1x32+pad/e8m0"), cast("e2m1fn/1x32+pad/e8m0"))
_NVFP4 = Scheme(cast("e2m1fn/1x16+pad/e4m3fn+fp32"), cast("e2m1fn/1x16+pad/e4m3fn+fp32"))
_MX_ROTATED = Scheme(cast("e2m1fn/1x32+pad/e8m0-four-thirds"), cast("e2m1fn/1x32+pad/e8m0-four-thirds"), _ROTATE_32)
_NV_ROTATED = Scheme(cast("e2m1fn/1x16+pad/e4m3fn+fp32"), cast("e2m1fn/1x16+pad/e4m3fn+fp32"), _ROTATE_16)
_INT8_STATIC = Scheme(cast("int8/row/fp32"), cast("int8/tensor/fp32"), static=True)
_FP8_STATIC = Scheme(cast("e4m3fn/tensor/fp32"), cast("e4m3fn/tensor/fp32"), static=True)
_FP8_CHANNEL_STATIC = Scheme(cast("e4m3fn/row/fp32"), cast("e4m3fn/tensor/fp32"), static=True)
_E3M4_STATIC = Scheme(cast("e3m4fn/row/fp32"), cast("e3m4fn/tensor/fp32"), static=True)
_E5M2_DIRECT = Scheme(cast("e5m2/row/fp32"), cast("e5m2"))
_FP8_MIXED = Scheme(cast("e3m4fn/row/fp32"), cast("e4m3fn/tensor/fp32"), static=True)
_FP4_SIGNS, _NF4_SIGNS = Scheme(cast("e2m1fn/1x128+pad/float16-signs")), Scheme(cast("nf4/1x128+pad/float16-signs"))
_NF4_DOUBLE = Scheme(cast("nf4/1x64+pad/dynamic8+fp32x256-mean"))
_KV_FP8 = CacheScheme(cast("e4m3fn/tensor/divide-fp32"), cast("e4m3fn/tensor/divide-fp32"), static=True)
_KV_SORTED = CacheScheme(cast("int4_full/1x32+pad/e8m0"), cast("int8/row/float16"), ordered=True)
_FP8_BLOCK = Scheme(cast("e4m3fn/128x128+pad/fp32"), cast("e4m3fn/1x128+pad/fp32"))

_KURTIC = "Kurtic et al. 2025, Give Me BF16 or Give Me Death? (ACL)"
_EGIAZARIAN = "Egiazarian et al. 2025, Bridging the Gap for Microscaling FP4 Quantization (MR-GPTQ)"
_SHEN = "Shen et al. 2024, Efficient Post-training Quantization with FP8 Formats (MLSys)"
_FRANTAR = "Frantar et al. 2022, GPTQ"
_BEHDIN = "Behdin et al. 2023, QuantEase: Optimization-based Quantization for Language Models"
_LIN = "Lin et al. 2023, AWQ"
_ZHANG = "Zhang et al. 2023, AFPQ: Asymmetric Floating Point Quantization for LLMs"
_DETTMERS = "Dettmers et al. 2023, QLoRA: Efficient Finetuning of Quantized LLMs"
_OCP = "OCP 2023, Microscaling Formats v1.0"
_DEEPSEEK = "DeepSeek-AI 2024, DeepSeek-V3"
_VLLM = "vLLM's FP8 cache under calibrated scales (kv_cache_scheme of compressed-tensors)"
_TRUKHANOV = "Trukhanov & Soloveychik 2024, Accurate Block Quantization in LLMs with Outliers"
_CLIP = LeastRowError(40)

_ROWS = (
    PtqRecipe("w8a8-fp8", "FP8: weights per channel, activations per token, dynamic; no data", _KURTIC, _W8_FP8),
    PtqRecipe("w8a8-fp8-kv-fp8", "w8a8-fp8, and an FP8 cache under calibrated scales", _VLLM, _W8_FP8, kv=_KV_FP8),
    PtqRecipe("w8a8-fp8-static", "FP8, one scale per tensor, activations calibrated", _SHEN, _FP8_STATIC),
    PtqRecipe("w8a8-fp8-block", "FP8 in 128x128 blocks, activations 1x128", _DEEPSEEK, _FP8_BLOCK),
    PtqRecipe("w8a8-e4m3-static", "E4M3 per channel, activations calibrated per tensor", _SHEN, _FP8_CHANNEL_STATIC),
    PtqRecipe("w8a8-e3m4-static", "E3M4 (to 30) per channel, activations calibrated per tensor", _SHEN, _E3M4_STATIC),
    PtqRecipe("w8a8-e5m2", "E5M2 per channel, activations cast as they are: no data", _SHEN, _E5M2_DIRECT),
    PtqRecipe("w8a8-e3m4-e4m3", "E3M4 weights per channel, E4M3 activations calibrated", _SHEN, _FP8_MIXED),
    PtqRecipe("w8a8-int8", "INT8 per channel and token: SmoothQuant, then GPTQ", _KURTIC, _W8_INT8,
              balance=Smooth(), solver=Solver()),
    PtqRecipe("w8a8-int8-static", "INT8 per channel, activations calibrated per tensor", _SHEN, _INT8_STATIC),
    PtqRecipe("w4a16-rtn", "INT4 in groups of 128, rounded to nearest", _FRANTAR, _W4_G128),
    PtqRecipe("w4a16-gptq", "INT4 in groups of 128: GPTQ under searched scales", _KURTIC, _W4_G128,
              search=LeastError(), solver=Solver()),
    PtqRecipe("w4a16-awq", "INT4 in groups of 128: AWQ, clipped for whole rows", _LIN, _W4_G128,
              search=_CLIP, balance=Awq()),
    PtqRecipe("w4a16-rtn-g32", "INT4 in groups of 32, rounded to nearest", _FRANTAR, _W4_G32),
    PtqRecipe("w4a16-gptq-g32", "INT4 in groups of 32: GPTQ under searched scales", _KURTIC, _W4_G32,
              search=LeastError(), solver=Solver()),
    PtqRecipe("w4a16-gptq-g32-kv-k4v8", "w4a16-gptq-g32, and cached keys in 4 bits, channels in order; values in 8",
              _TRUKHANOV, _W4_G32, search=LeastError(), solver=Solver(), kv=_KV_SORTED),
    PtqRecipe("w4a16-descent", "INT4 in groups of 128: GPTQ, then coordinate descent", _BEHDIN, _W4_G128,
              search=LeastError(), solver=Solver(refine=2)),
    PtqRecipe("w4a16-descent-g32", "INT4 in groups of 32: GPTQ, then coordinate descent", _BEHDIN, _W4_G32,
              search=LeastError(), solver=Solver(refine=2)),
    PtqRecipe("w4a16-zero-rtn-g32", "INT4 with zero points in groups of 32, rounded to nearest", _FRANTAR,
              _W4_ZERO_G32),
    PtqRecipe("w4a16-zero-gptq-g32", "INT4 with zero points in groups of 32: GPTQ under searched scales", _FRANTAR,
              _W4_ZERO_G32, search=LeastError(), solver=Solver()),
    PtqRecipe("w4a16-awq-g32", "INT4 in groups of 32: AWQ, clipped for whole rows", _LIN, _W4_G32,
              search=_CLIP, balance=Awq()),
    PtqRecipe("w4a16-zero-awq-g32", "INT4 with zero points in groups of 32: AWQ, clipped for whole rows", _LIN,
              _W4_ZERO_G32, search=_CLIP, balance=Awq()),
    PtqRecipe("w4a16-fp4-afpq", "E2M1 in groups of 128, a scale for either sign", _ZHANG, _FP4_SIGNS),
    PtqRecipe("w4a16-nf4-afpq-gptq", "NF4 in groups of 128, a scale for either sign: GPTQ", _ZHANG, _NF4_SIGNS,
              solver=Solver()),
    PtqRecipe("w4a16-nf4-double", "NF4 in groups of 64 under scales of 8 bits", _DETTMERS, _NF4_DOUBLE),
    PtqRecipe("mxfp4", "MXFP4 weights and activations, rounded to nearest", _OCP, _MXFP4),
    PtqRecipe("mxfp4-gptq", "MXFP4 weights and activations, GPTQ", _EGIAZARIAN, _MXFP4, solver=Solver()),
    PtqRecipe("mxfp4-mr-gptq", "MXFP4, rotated in blocks of 32, 4/3 shift, GPTQ", _EGIAZARIAN, _MX_ROTATED,
              solver=Solver()),
    PtqRecipe("nvfp4", "NVFP4 weights and activations, rounded to nearest", _EGIAZARIAN, _NVFP4),
    PtqRecipe("nvfp4-gptq", "NVFP4 weights and activations: GPTQ under searched scales", _EGIAZARIAN, _NVFP4,
              search=LeastError(), solver=Solver()),
    PtqRecipe("nvfp4-mr-gptq", "NVFP4, rotated in blocks of 16: GPTQ under searched scales", _EGIAZARIAN, _NV_ROTATED,
              search=LeastError(), solver=Solver()),
)  # fmt: skip
_RECIPES = {row.name: row for row in _ROWS}


def recipes() -> dict[str, PtqRecipe]:
    """Return every post-training recipe by name."""
    return dict(_RECIPES)


def recipe(name: str | PtqRecipe) -> PtqRecipe:
    """Return the recipe called ``name``; InputError with the nearest names.

    A spelling of a cast (``int4/1x64/fp32``) is a recipe too: all weights by that cast, rounded to nearest, and inputs
    left wide.
    """
    if isinstance(name, PtqRecipe):
        return name
    if "/" in name:
        return PtqRecipe(name, f"weights as {name}, rounded to nearest", "a cast, by its spelling", Scheme(cast(name)))
    if name not in _RECIPES:
        raise InputError(f"unknown post-training recipe {name!r}{nearest(name, _RECIPES)}")
    return _RECIPES[name]

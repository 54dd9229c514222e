"""Models quantized in memory with the conventions of other loaders, and how these load them."""

from pathlib import Path

import torch
import transformers
from tests.ptq.architectures import TABLE, built

import narrowcast as nc
from narrowcast.models.quiet import quiet
from narrowcast.ptq.recipe import PtqRecipe, Scheme
from narrowcast.ptq.served import served
from narrowcast.quantize import cast

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
ARCHITECTURES = {a.name: a for a in TABLE}


def scheme(weight: str, activation: str | None = None, static: bool = False) -> PtqRecipe:
    return PtqRecipe("test", "", "", Scheme(cast(weight), cast(activation) if activation else None, static=static))


SCHEMES = {
    "fp8": scheme("e4m3fn/row/fp32", "e4m3fn/row/fp32"),
    "fp8-static": scheme("e4m3fn/tensor/fp32", "e4m3fn/tensor/fp32", static=True),
    "fp8-block": scheme("e4m3fn/32x32+pad/fp32", "e4m3fn/1x32+pad/fp32"),
    "int8": scheme("int8/row/fp32", "int8/row/fp32"),
    "int8-static": scheme("int8/row/fp32", "int8/tensor/fp32", static=True),
    "w8a16": scheme("e4m3fn/row/fp32"),
    "w4a16": scheme("int4/1x32+pad/fp32"),
    "w3a16": scheme("int3/1x32+pad/fp32"),
    "w4a16-zero": scheme("int4_full/1x32+pad/fp32-zero4"),
    "w3a16-zero": scheme("int3_full/row/fp32-zero3"),
    "w8a8-zero": scheme("int8_full/row/fp32-zero8", "int8/row/fp32"),
    "w4afp8": scheme("int4/1x32+pad/fp32", "e4m3fn/row/fp32"),
    "nvfp4": scheme("e2m1fn/1x16+pad/e4m3fn+fp32", "e2m1fn/1x16+pad/e4m3fn+fp32"),
    "nvfp4a16": scheme("e2m1fn/1x16+pad/e4m3fn+fp32"),
    "mxfp4": scheme("e2m1fn/1x32+pad/e8m0", "e2m1fn/1x32+pad/e8m0"),
    "mxfp8": scheme("e4m3fn/1x32+pad/e8m0", "e4m3fn/1x32+pad/e8m0"),
}


def quantized(name: str, chosen: PtqRecipe, dtype: torch.dtype) -> torch.nn.Module:
    model = built(ARCHITECTURES[name])
    for parameter in model.parameters():  # not buffers: rotary frequencies stay float32, as they do on loading
        parameter.data = parameter.data.to(dtype)
    nc.ptq.quantize_model(model, served(chosen, dtype), [inputs(name, s, dtype) for s in (0, 1)])
    return model


def inputs(name: str, seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    found = ARCHITECTURES[name].inputs(seed)
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in found.items()}


def logits(model: torch.nn.Module, name: str, dtype: torch.dtype, **more) -> torch.Tensor:
    with torch.no_grad(), quiet():
        return model(**inputs(name, 99, dtype), **more).logits


def theirs(path: Path, kind: type, **more) -> torch.nn.Module:
    with quiet():
        return getattr(transformers, kind.__name__).from_pretrained(path, **more)

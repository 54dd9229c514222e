"""How each library of block formats is called for `bench/conformance.py`: one row per encoder, as for the elements."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from bench.conformance_row import Row, row
from torch import Tensor

import narrowcast as nc


def gfloat() -> Iterator[Row]:
    """quantize_block with compute_scale_amax, block by block."""
    import gfloat.formats as infos
    from gfloat.block import compute_scale_amax, quantize_block

    for name in ("mxfp4_e2m1", "mxfp8_e4m3", "mxint8"):
        info = getattr(infos, f"format_info_{name}")

        def dequantized(x: Any, info: Any = info) -> Any:
            blocks = x.reshape(-1, 32).astype(np.float64)
            return (
                np.stack([quantize_block(info, block, compute_scale_amax) for block in blocks])
                .reshape(x.shape)
                .astype(np.float32)
            )

        refused = ("NaN", "infinity")  # its scale overflows: ValueError
        preset = name.removesuffix("_e2m1")
        yield row("quantize_block", dequantized, format=preset, arrays="numpy", leave_out=refused)


def torchao() -> Iterator[Row]:
    """MX in four scaling modes, NVFP4 on one and two levels, float8 and integers with float32 scales."""
    from torchao.float8.float8_utils import ScalingGranularity, tensor_to_scale, to_fp8_saturated
    from torchao.prototype.mx_formats import kernels, mx_tensor, nvfp4_tensor
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2
    from torchao.quantization import quant_primitives

    for name, word in {"e2m1fn": "f4", "e2m3fn": "f6_e2m3", "e3m2fn": "f6_e3m2"}.items():
        encode, decode = (getattr(kernels, f) for f in (f"f32_to_{word}_unpacked", f"{word}_unpacked_to_f32"))
        yield row(f"f32_to_{word}_unpacked", encode, decode, format=name, leave_out=("NaN",))  # ruled out in its notes
    kinds = {
        "e4m3fn": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e2m3fn": DTYPE_FP6_E2M3, "e3m2fn": DTYPE_FP6_E3M2,
        "e2m1fn": torch.float4_e2m1fn_x2,
    }  # fmt: skip
    for name, kind in kinds.items():
        for mode, rule in {"FLOOR": "floor", "RCEIL": "ceil", "CEIL": "ceil-exponent", "EVEN": "even"}.items():

            def to_mx(x: Tensor, kind: Any = kind, mode: Any = ScaleCalculationMode[mode]) -> Any:
                return mx_tensor.to_mx(x, kind, 32, mode)[::-1]

            def from_mx(codes: Tensor, scales: Tensor, kind: Any = kind) -> Tensor:
                return mx_tensor.to_dtype(codes, scales, kind, 32, torch.float32)

            yield row(f"to_mx, {mode}", to_mx, from_mx, format=name, scale_rule=f"e8m0-{rule}", tile="1x32")

    def nvfp4(x: Tensor) -> Any:
        scale = nvfp4_tensor.per_tensor_amax_to_scale(x.abs().amax())
        return *nvfp4_tensor.nvfp4_quantize(x, 16, scale)[::-1], scale

    def from_nvfp4(codes: Tensor, scales: Tensor, tensor: Tensor | None = None) -> Tensor:
        whole = None if tensor is None else tensor.reshape(())
        return nvfp4_tensor.NVFP4Tensor(codes, scales, 16, torch.float32, whole).dequantize(torch.float32)

    yield row("nvfp4_quantize", nvfp4, from_nvfp4, format="nvfp4")
    one_level = lambda x: nvfp4_tensor.nvfp4_quantize(x, 16)[::-1]  # noqa: E731
    yield row("nvfp4_quantize, one level", one_level, from_nvfp4, format="e2m1fn/1x16/e4m3fn")

    def float8(x: Tensor, by_row: bool) -> Any:
        how = ScalingGranularity.AXISWISE if by_row else ScalingGranularity.TENSORWISE
        scale = tensor_to_scale(x, torch.float8_e4m3fn, scaling_granularity=how, axiswise_dim=-1 if by_row else None)
        return to_fp8_saturated(x * scale, torch.float8_e4m3fn), scale.reciprocal()

    yield row("float8, rowwise", lambda x: float8(x, True), format="e4m3fn/row/fp32")
    yield row("float8, tensorwise", lambda x: float8(x, False), format="e4m3fn/tensor/fp32")

    def affine_float8(x: Tensor) -> Any:
        scale = quant_primitives._choose_scale_float8(x, (1, x.shape[-1]), torch.float8_e4m3fn)
        return quant_primitives._quantize_affine_float8(x, scale, torch.float8_e4m3fn), scale

    yield row("affine float8, rowwise", affine_float8, format="e4m3fn/row/fp32")

    def affine_integer(x: Tensor, top: int) -> Any:
        symmetric = quant_primitives.MappingType.SYMMETRIC
        scale, zero = quant_primitives.choose_qparams_affine(x, symmetric, (1, 32), torch.int8, -top, top)
        return quant_primitives.quantize_affine(x, (1, 32), scale, zero, torch.int8, -top, top), scale

    for bits in (8, 4):
        encode = partial(affine_integer, top=(1 << (bits - 1)) - 1)
        yield row("quantize_affine, symmetric", encode, format=f"int{bits}/1x32/fp32")


def compressed_tensors() -> Iterator[Row]:
    """Dynamic scales and `quantize`, as its recipes set them."""
    from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8, unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize, quantize
    from compressed_tensors.quantization.utils import generate_gparam
    from compressed_tensors.quantization.utils.fp4_utils import cast_to_fp4
    from compressed_tensors.quantization.utils.fp6_utils import cast_to_fp6
    from compressed_tensors.quantization.utils.helpers import compute_dynamic_scales_and_zp

    yield row("cast_to_fp4", lambda x: cast_to_fp4(x.clamp(-6, 6)), format="e2m1fn")
    yield row("cast_to_fp6", lambda x: cast_to_fp6(x.clamp(-7.5, 7.5)), format="e2m3fn")

    def packed(x: Tensor) -> Tensor:
        return pack_fp4_to_uint8(nc.round(x, "e2m1fn"))  # it packs what is on the grid already

    def unpacked(codes: Tensor) -> Tensor:
        return unpack_fp4_from_uint8(codes, codes.shape[0], codes.shape[1] * 2, dtype=torch.float32)

    yield row("pack_fp4_to_uint8", packed, unpacked, format="e2m1fn", leave_out=("NaN",))

    def arguments(bits: int, kind: str, strategy: str, **more: Any) -> QuantizationArgs:
        return QuantizationArgs(
            **{"dynamic": True, **more}, num_bits=bits, type=kind, strategy=strategy, symmetric=True
        )

    for bits, preset in {4: "mxfp4", 6: "mxfp6_e2m3", 8: "mxfp8_e4m3"}.items():
        mx = arguments(bits, "float", "group", group_size=32, scale_dtype=torch.uint8)

        def dequantized(x: Tensor, mx: QuantizationArgs = mx) -> Tensor:
            return fake_quantize(x, *compute_dynamic_scales_and_zp(x, mx, None), mx)

        yield row("MX", dequantized, format=preset, scale_rule="e8m0-even")

    nv = arguments(4, "float", "tensor_group", dynamic="local", group_size=16, scale_dtype=torch.float8_e4m3fn)

    def nvfp4(x: Tensor) -> Any:
        whole = generate_gparam(x.min(), x.max())
        scale, zero = compute_dynamic_scales_and_zp(x, nv, None, global_scale=whole)
        codes = pack_fp4_to_uint8(quantize(x, scale, zero, nv, global_scale=whole).nan_to_num(0.0))
        return codes, scale.to(torch.float8_e4m3fn), whole.reciprocal()

    yield row("NVFP4", nvfp4, format="nvfp4")

    def by_token(x: Tensor, how: QuantizationArgs, dtype: torch.dtype) -> Any:
        scale, zero = compute_dynamic_scales_and_zp(x[None], how, None)
        return quantize(x[None], scale, zero, how, dtype=dtype)[0], scale[0]

    rows8, fp8 = arguments(8, "int", "token"), arguments(8, "float", "token")
    yield row("int8, by token", lambda x: by_token(x, rows8, torch.int8), format="int8_full/row/fp32")
    yield row("float8, by token", lambda x: by_token(x, fp8, torch.float8_e4m3fn), format="e4m3fn/row/fp32")
    groups = arguments(4, "int", "group", group_size=32)

    def by_group(x: Tensor) -> Any:
        scale, zero = compute_dynamic_scales_and_zp(x, groups, None)
        return quantize(x, scale, zero, groups, dtype=torch.int8), scale

    yield row("int4, groups of 32", by_group, format="int4_full/1x32/fp32")

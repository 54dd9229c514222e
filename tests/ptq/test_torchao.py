"""Codes and scales beside torchao's, where both know the format: symmetric integers in groups, and FP8 by rows."""

import warnings

import pytest
import torch

from narrowcast.quantize import cast

torchao = pytest.importorskip("torchao", reason="the peer is not installed")
G = torch.Generator().manual_seed(0)
X = torch.randn(64, 256, generator=G) * torch.randn(64, 1, generator=G).exp()


@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (8, 256), (3, 64)])
def test_integers_in_groups(bits, group):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.quant_primitives import MappingType, choose_qparams_affine, quantize_affine

    top = 2 ** (bits - 1) - 1
    scale, zero = choose_qparams_affine(
        X, MappingType.SYMMETRIC_NO_CLIPPING_ERR, (1, group), torch.int8, -top, top, scale_dtype=torch.float32
    )
    codes = quantize_affine(X, (1, group), scale, zero, torch.int8, -top, top)
    ours = cast(f"int{bits}/1x{group}/fp32").settle(X)
    assert torch.equal(ours.scale.stored.flatten(), scale.flatten())
    assert torch.equal(ours.apply(X), codes.float() * scale.view(64, -1).repeat_interleave(group, 1))


def test_fp8_by_rows():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchao.quantization.quant_primitives import _choose_scale_float8, _quantize_affine_float8

    scale = _choose_scale_float8(X, [1, 256], torch.float8_e4m3fn)
    codes = _quantize_affine_float8(X, scale, torch.float8_e4m3fn)
    ours = cast("e4m3fn/row/fp32").quantize(X)
    assert torch.equal(ours.scales.flatten(), scale.flatten())
    differ = (ours.codes != codes.view(torch.uint8)).float().mean()
    assert differ < 1e-3  # it divides by the scale where we multiply by its reciprocal: now and then another tie

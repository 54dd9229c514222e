"""Gemms and linear layers with an accumulator or a product of their own."""

import pytest
import torch
from torch import nn

from narrowcast.accumulate import accumulator, product
from narrowcast.backend import choose
from narrowcast.errors import InputError
from narrowcast.nn import Linear, LinearSpec
from narrowcast.ops import REUSE, WIDE, Gemm, Reuse, attention, matmul
from narrowcast.quantize import cast

DFP16 = cast("int16/tensor/e8m0")


def layer(gemm: Gemm, backward: Gemm | None = None, **sizes: int) -> tuple[Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    source = nn.Linear(sizes.get("k", 64), 32, bias=False)
    spec = LinearSpec(gemm, backward or gemm, backward or gemm)
    x = torch.randn(32, source.in_features, requires_grad=True)
    return Linear(source, spec, "site"), x, torch.randn(32, 32)


def test_dynamic_fixed_point_is_a_cast():
    """Sheet 51's golden: Emax = 1, E = -13; and an all-zero tensor."""
    codes = DFP16.split(torch.tensor([[0.3, -1.7, 3.2, 5e-5]]))
    assert codes.values.tolist() == [[2458, -13926, 26214, 0]]
    assert codes.scale is not None and codes.scale.unique().tolist() == [2.0**-13]
    assert DFP16.split(torch.zeros(1, 4)).scaled().tolist() == [[0] * 4]


@pytest.mark.parametrize(("bits", "chain"), [(16, 2), (15, 8)])
def test_int16_gemms_spill_before_they_overflow(bits, chain):
    """Sheet 51: chains of 2**(1 + 2k) products with k bits given up are exact, each then rounded to float32 once."""
    shared = cast(f"int{bits}/tensor/e8m0")
    gemm = Gemm(shared, shared, accumulator=accumulator(f"int32-wrap/every{chain}/fp32"))
    narrow, x, g = layer(gemm)
    found = narrow(x)
    a, b = (shared.split(t.detach()) for t in (x, narrow.weight))
    total = torch.zeros(32, 32)
    for k in range(0, 64, chain):
        part = (a.values[:, k : k + chain].long() @ b.values[:, k : k + chain].long().T).float()
        total += part * (a.scale[0, 0] * b.scale[0, 0])
    assert torch.equal(found, total)
    found.backward(g)
    assert torch.isfinite(x.grad).all() and torch.isfinite(narrow.weight.grad).all()
    exact = matmul(
        shared.split(x), shared.split(narrow.weight), Gemm(shared, shared, accumulator=accumulator("int48-raise"))
    )
    assert (found - exact).abs().max() < 1e-5


def test_without_a_spill_int32_wraps():
    gemm = Gemm(DFP16, DFP16, accumulator=accumulator("int32-wrap"))
    narrow, x, _ = layer(gemm, k=512)
    assert (narrow(x) - x @ narrow.weight.T).abs().max() > 1


def test_codes_and_scales_reach_the_tensor_core_apart():
    """With a scale of 448 / amax the codes of e4m3fn are aligned, not the values; promotion sees each tile's scale."""
    tile = cast("e4m3fn/1x32/fp32")
    gemm = Gemm(tile, tile, accumulator=accumulator("hopper-fp8/every32/fp32"))
    narrow, x, g = layer(gemm)
    a, b = tile.split(x.detach()), tile.split(narrow.weight.detach())
    assert torch.equal(narrow(x), accumulator("hopper-fp8/every32/fp32").matmul(a, b))
    assert torch.equal(a.scaled(), tile.apply(x.detach()))
    narrow(x).backward(g)
    with pytest.raises(InputError, match="changes within one sum"):
        layer(Gemm(tile, tile, accumulator=accumulator("hopper-fp8")))[0](x)


def test_a_narrow_sum_in_every_gemm_of_a_layer():
    bf16 = cast("bfloat16")
    gemm = Gemm(bf16, bf16, accumulator=accumulator("bf16-sequential"))
    narrow, x, g = layer(gemm)
    y = narrow(x)
    y.backward(g)
    acc, (xb, wb, gb) = accumulator("bf16-sequential"), (bf16.apply(t.detach()) for t in (x, narrow.weight, g))
    assert torch.equal(y, acc.matmul(xb, wb))
    assert torch.equal(x.grad, acc.matmul(gb, wb.T)) and torch.equal(narrow.weight.grad, acc.matmul(gb.T, xb.T))


def test_lmul_forward_with_exact_gradients():
    multiply = product("lmul4")
    narrow, x, g = layer(Gemm(WIDE, WIDE, product=multiply), Gemm(WIDE, WIDE))
    y = narrow(x)
    y.backward(g)
    assert torch.equal(y, multiply.matmul(x.detach(), narrow.weight.detach()))
    assert torch.equal(x.grad, g @ narrow.weight.detach())


def test_what_cannot_be_is_refused_at_birth():
    tensor = cast("e4m3fn/tensor/fp32")
    core = Gemm(tensor, tensor, accumulator=accumulator("hopper-fp8"))
    for first, again in ((core, Reuse(tensor)), (Gemm(tensor, tensor), REUSE)):
        with pytest.raises(InputError, match="reuses decoded values"):
            LinearSpec(first, Gemm(tensor, again, accumulator=core.accumulator), Gemm(REUSE, REUSE))
    with pytest.raises(InputError, match="ordinary products only"):
        Gemm(tensor, tensor, accumulator=accumulator("hopper-fp8"), product=product("lmul3"))
    with pytest.raises(InputError, match="give it to the gemm"):
        cast("e2m1fn/1x32/e8m0/nearest-even/hadamard32").split(torch.ones(1, 32))


def test_the_table_names_what_is_emulated():
    tensor = cast("e4m3fn/tensor/fp32")
    gemm = Gemm(tensor, tensor, accumulator=accumulator("hopper-fp8"))
    kernel = choose("emulate", gemm, torch.device("cpu"), "layer").kernel
    assert kernel == "times of decoded operands, accumulated by hopper-fp8"


def heads(*shape: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    return [torch.randn(2, 3, *size, generator=g) for size in shape]


def test_wide_attention_is_torchs():
    q, k, v = heads((5, 8), (7, 8), (7, 8))
    mask = torch.zeros(5, 7).masked_fill(torch.ones(5, 7).triu(3).bool(), -torch.inf)
    found = attention(q, k, v, Gemm(WIDE, WIDE), Gemm(WIDE, WIDE), mask=mask)
    expected = nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), attn_mask=mask.double())
    assert (found - expected).abs().max() < 1e-6


def test_both_products_of_attention_are_gemms():
    q, k, v = heads((5, 8), (7, 8), (7, 8))
    multiply = product("lmul4")
    row = cast("e4m3fn/row/fp32")
    found = attention(q, k, v, Gemm(WIDE, WIDE, product=multiply), Gemm(row, row), scale=0.5)
    shares = (multiply.matmul(q, k) * 0.5).softmax(-1)
    assert torch.equal(found, row.apply(shares) @ row.apply(v.mT).mT)
    dithered = cast("e2m1fn/row/fp32/stochastic")
    with pytest.raises(InputError, match="attention scores: a gemm by itself draws no random bits"):
        attention(q, k, v, Gemm(dithered, dithered), Gemm(WIDE, WIDE))
    with pytest.raises(InputError, match="attention values, operand a of shape"):
        attention(q, k, v, Gemm(WIDE, WIDE), Gemm(cast("mxfp8"), cast("mxfp8")))

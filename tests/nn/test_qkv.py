"""Norm and projections of attention in one: against the three layers apart, and what it leaves of a model."""

import copy

import pytest
import torch
from tests.tiny import CONFIG
from torch import nn
from torch.utils.checkpoint import checkpoint

import narrowcast as nc
from narrowcast import passes
from narrowcast.nn.linear import Linear
from narrowcast.nn.qkv import First, NormedQKV
from narrowcast.recipes import recipe

SIZES = {"q_proj": 64, "k_proj": 32, "v_proj": 32}


class Heads(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        for name, size in SIZES.items():
            setattr(self, name, nn.Linear(48, size, bias=bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)


class Block(nn.Module):
    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = nn.RMSNorm(48, eps=1e-5), Heads(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.self_attn(self.input_layernorm(x))


def model(bias: bool = False) -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(Block(bias))
    with torch.no_grad():
        made[0].input_layernorm.weight.uniform_(0.5, 2.0)
    return made


def llama(kind: str, **more: object) -> nn.Module:
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        **{**CONFIG, "num_hidden_layers": 1, "attention_dropout": 0.0, **more}
    )
    return getattr(transformers, f"{kind}ForCausalLM")(config)


@pytest.mark.parametrize("bias", [False, True])
def test_under_scales_of_rows_it_is_the_three_layers_bit_for_bit(bias):
    """Products and weights' gradients; the gradient of x shares the scale of a token among the three."""
    joined = model(bias)
    nc.convert(joined, "fp8-rowwise", backend="emulate")
    apart = copy.deepcopy(joined)
    assert [row.became for row in NormedQKV().apply(joined, "emulate")] == ["changed"]
    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, 48, generator=g, requires_grad=True)
    norm, heads = apart[0].input_layernorm, apart[0].self_attn
    y, expected = joined(x), heads(passes.rms_norm(x.detach().view(-1, 48), norm.weight.detach(), norm.eps)[0])
    assert torch.equal(y.view(-1, 128), expected)
    up = torch.randn(y.shape, generator=g)
    y.backward(up)
    expected.backward(up.view(-1, 128))
    for name in SIZES:
        one, other = (getattr(unit, name) for unit in (joined[0].self_attn, heads))
        assert torch.equal(one.weight.grad, other.weight.grad)
        assert not bias or torch.equal(one.bias.grad, other.bias.grad)
    plain = model(bias)
    again = x.detach().clone().requires_grad_()
    plain(again).backward(up)
    assert (x.grad - again.grad).norm() < 0.05 * again.grad.norm()
    mine, theirs = (made[0].input_layernorm.weight.grad for made in (joined, plain))
    assert (mine - theirs).norm() < 0.05 * theirs.norm()


@pytest.mark.parametrize("name", ["fp8-static", "fp8-smooth-swiglu", "fp8-delayed", "fp8-block"])
def test_recomputation_changes_nothing_and_parameters_keep_their_names(name):
    one = llama("Llama")
    nc.convert(one, name, backend="emulate")
    names = {n: p.shape for n, p in one.named_parameters()}
    assert [row.became for row in NormedQKV().apply(one, "emulate")] == ["changed"]
    assert {n: p.shape for n, p in one.named_parameters()} == names
    other = copy.deepcopy(one)
    block = other.model.layers[0]
    inner = block.forward
    block.forward = lambda *a, **k: checkpoint(inner, *a, use_reentrant=False, **k)
    ids = torch.arange(24).view(2, 12)
    for made in (one, other):
        for _ in range(2):
            made(input_ids=ids, labels=ids).loss.backward()
    for (n, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), n
    for (n, p), (_, q) in zip(one.named_buffers(), other.named_buffers(), strict=True):
        assert torch.equal(p, q), n


def test_a_copy_is_a_copy():
    one = model()
    nc.convert(one, "fp8-static", backend="emulate")
    NormedQKV().apply(one, "emulate")
    other = copy.deepcopy(one)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    x = torch.ones(1, 16, 48)
    assert one(x).any()
    assert not other(x).any()
    assert isinstance(other[0].self_attn.q_proj, First)


def test_called_out_of_turn_it_says_so():
    one = model()
    nc.convert(one, "fp8-rowwise", backend="emulate")
    NormedQKV().apply(one, "emulate")
    heads, x = one[0].self_attn, torch.ones(1, 16, 48)
    heads.q_proj(x)
    with pytest.raises(nc.InputError, match=r"layer '0.self_attn.k_proj' is joined with q_proj .*another input"):
        heads.k_proj(x.clone())
    with pytest.raises(nc.InputError, match=r"without '\+joined'"):
        heads.k_proj(x)


@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [
        ("Gemma", {"head_dim": 8}, "GemmaRMSNorm is not x / rms"),
        ("Gemma2", {"head_dim": 8}, "the block has another norm, pre_feedforward_layernorm"),
    ],
)
def test_other_blocks_are_refused_and_left_as_they_were(kind, more, why):
    one = llama(kind, **more)
    nc.convert(one, "fp8-rowwise", backend="emulate")
    with pytest.raises(nc.InputError, match=rf"block 'model.layers.0': .* cannot be one: {why}"):
        NormedQKV().apply(one, "emulate")
    assert type(one.model.layers[0].self_attn.q_proj) is Linear


def test_layers_narrowed_unlike_are_refused():
    one = model()
    nc.convert(one, "fp8-rowwise", only=("*q_proj", "*v_proj"), backend="emulate")
    with pytest.raises(nc.InputError, match="its three layers are not narrowed alike"):
        NormedQKV().apply(one, "emulate")
    assert NormedQKV() in recipe("fp8-static+joined").changes

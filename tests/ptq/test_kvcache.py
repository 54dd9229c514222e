"""Keys and values under a cast, and the order of channels: exact changes of basis, worked blocks, grouped heads, RoPE."""

import copy

import pytest
import torch
from tests.ptq.architectures import TABLE, built, tokens

from narrowcast.errors import InputError
from narrowcast.ptq.kvcache import CacheCasts, head_order, key_orders, narrow_cache, permuted_rows
from narrowcast.quantize import cast

BFP = cast("int4_full/1x4/e8m0")
G = torch.Generator().manual_seed(0)


def logits(model):
    with torch.no_grad():
        return model(**tokens(1), use_cache=False).logits


def test_the_papers_blocks():
    assert BFP.apply(torch.tensor([[1.0, 0.3, -0.26, 1.9]])).tolist() == [[1.0, 0.25, -0.25, 1.75]]
    assert BFP.apply(torch.tensor([[8.0, 0.3, 0.3, 0.3]])).tolist() == [[8.0, 0.0, 0.0, 0.0]]
    assert 16 / cast("int4_full/1x64/e8m0").bits_per_element((64, 64)) == pytest.approx(3.88, abs=0.005)


@pytest.mark.parametrize("name", ["llama", "qwen", "mistral"])
@pytest.mark.parametrize("pairs", [False, True])
def test_an_order_alone_changes_nothing_and_a_cast_does(name, pairs):
    model = built(next(a for a in TABLE if a.name == name))
    wide, other = logits(model), copy.deepcopy(model)
    narrow_cache(other, CacheCasts(order=key_orders(other, pairs)))
    assert torch.allclose(logits(other), wide, atol=1e-5)
    narrow_cache(other, CacheCasts(key=cast("int4/1x4/e8m0"), value=cast("int8/row/fp32")))
    assert (logits(other) - wide).abs().max() > 1e-4
    assert torch.equal(logits(copy.deepcopy(other)), logits(other))
    assert torch.equal(logits(model), wide)


def test_a_block_as_wide_as_the_head_does_not_care_for_the_order():
    model = built(next(a for a in TABLE if a.name == "llama"))
    keys = torch.randn(2, 2, 5, 16, generator=G)
    order = next(iter(key_orders(model).values()))
    whole = cast("int4_full/1x16/e8m0")
    index = order[None, :, None].expand_as(keys)
    assert torch.equal(whole.apply(keys.gather(-1, index)), whole.apply(keys).gather(-1, index))


def test_rows_in_pairs_leave_the_rotary_embedding_with_its_frequencies_in_order():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    heads, width, hidden, length = 2, 16, 32, 7
    wq, wk = torch.randn(4 * width, hidden, generator=G), torch.randn(heads * width, hidden, generator=G)
    x = torch.randn(1, length, hidden, generator=G)
    angles = torch.arange(length)[:, None] * (100.0 ** -torch.arange(0, 1, 2 / width))[None]
    cos, sin = (f(torch.cat([angles, angles], -1))[None] for f in (torch.cos, torch.sin))
    order = head_order(wk, heads, pairs=True)
    assert torch.equal(order[:, : width // 2] + width // 2, order[:, width // 2 :])

    def scores(wq, wk, head, turn):
        q, k = ((x @ w.T).view(1, length, -1, width).transpose(1, 2) for w in (wq, wk))
        q, k = q[:, 2 * head : 2 * head + 2], k[:, head : head + 1]
        q, k = apply_rotary_pos_emb(q, k, cos[..., turn], sin[..., turn])
        return q @ k.mT

    moved = permuted_rows(wq, order, shared=2), permuted_rows(wk, order)
    for head in range(heads):
        plain = scores(wq, wk, head, torch.arange(width))
        assert torch.allclose(scores(*moved, head, order[head]), plain, atol=1e-4)
        assert not torch.allclose(scores(*moved, head, torch.arange(width)), plain, atol=1e-2)


def test_rows_are_sorted_within_their_head_and_a_bias_counts():
    weight = torch.tensor([[1.0], [3.0], [2.0], [5.0], [4.0], [6.0]])
    assert head_order(weight, 2).tolist() == [[1, 2, 0], [2, 0, 1]]
    assert permuted_rows(weight, head_order(weight, 2)).flatten().tolist() == [3, 2, 1, 6, 5, 4]
    assert head_order(weight, 2, bias=torch.tensor([9.0, 0, 0, 0, 0, 0])).tolist()[0] == [0, 1, 2]


def test_what_does_not_fit_is_refused():
    model = built(next(a for a in TABLE if a.name == "llama"))
    with pytest.raises(InputError, match="no module 'nowhere'"):
        narrow_cache(model, CacheCasts(order={"nowhere": torch.zeros(1, 1)}))
    name = next(iter(key_orders(model)))
    narrow_cache(model, CacheCasts(order={name: torch.zeros(2, 5, dtype=torch.int64)}))
    with pytest.raises(InputError, match="does not fit"):
        logits(model)
    with pytest.raises(InputError, match="heads"):
        head_order(torch.zeros(10, 4), 3)
    with pytest.raises(InputError, match="no attention with a k_proj"):
        key_orders(torch.nn.Linear(2, 2))

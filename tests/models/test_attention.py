"""A model's attention replaced from outside."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from narrowcast.errors import InputError
from narrowcast.models import from_config
from narrowcast.models.attention import set_attention


def small_llama() -> nn.Module:
    from transformers import LlamaConfig

    return from_config(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2), 0
    ).eval()  # fmt: skip


def test_the_function_sees_every_head_mask_and_scale():
    model, other, seen = small_llama(), small_llama(), []
    ids = torch.arange(12).view(1, 12)

    def attention(q, k, v, mask, scale):
        seen.append((tuple(q.shape), tuple(k.shape), mask[0, 0, 0, 1].item() < -1e30, mask[0, 0, 1, 0].item()))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

    with torch.no_grad():
        expected = model(input_ids=ids).logits
        set_attention(model, attention)
        assert torch.allclose(model(input_ids=ids).logits, expected, atol=1e-5)
        assert seen == [((1, 4, 12, 8), (1, 4, 12, 8), True, 0.0)] * 2
        set_attention(model, lambda q, k, v, mask, scale: torch.zeros_like(q))
        assert not torch.allclose(model(input_ids=ids).logits, expected, atol=1e-3)
        assert torch.equal(other(input_ids=ids).logits, expected)


def test_a_model_without_that_setting_is_refused():
    with pytest.raises(InputError, match="Linear has no attention to set"):
        set_attention(nn.Linear(2, 2), lambda q, k, v, mask, scale: q)

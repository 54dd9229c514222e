"""Another attention function inside a Hugging Face model, without touching the model's code."""

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.models.quiet import quiet

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
#: the same for one layer: (its attention module, q, k, v, mask, scale), k and v with their own fewer heads
LayerAttention = Callable[[nn.Module, Tensor, Tensor, Tensor, Tensor | None, float], Tensor]
_NUMBERS = count()


def set_attention(model: nn.Module, attention: Attention) -> None:
    """Let every attention layer of ``model`` call ``attention(q, k, v, mask, scale)``.

    ``q [B, H, T, D]``, ``k`` and ``v`` ``[B, H, S, D]`` (grouped heads repeated), ``mask`` added to the scores
    (causal, as the model makes it); the result is ``[B, H, T, D]``. Raises InputError where nothing can be set.
    """

    def of_layer(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        return attention(query, *repeated(query, key, value), mask, scale)

    set_layer_attention(model, of_layer)


def repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values ``[B, G, S, D]`` with each of their heads as often as queries share it."""
    groups = query.shape[1] // key.shape[1]
    return torch.repeat_interleave(key, groups, dim=1), torch.repeat_interleave(value, groups, dim=1)


def set_layer_attention(model: nn.Module, attention: LayerAttention) -> None:
    """Let every attention layer of ``model`` call ``attention(module, q, k, v, mask, scale)``, as for `set_attention`.

    ``k`` and ``v`` are what a cache would hold, behind rotary embeddings: ``[B, G, S, D]`` with G key heads. A model
    whose attention caps its scores or has sinks is refused with InputError when it runs.
    """
    with quiet():
        from transformers import AttentionInterface, AttentionMaskInterface
        from transformers.masking_utils import eager_mask

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, **more: Any
    ) -> tuple[Tensor, None]:
        for name in ("softcap", "s_aux"):  # a cap on the scores; sinks
            if more.get(name) is not None:
                raise InputError(f"{type(module).__name__}: its attention takes {name}, which none here has")
        return attention(module, query, key, value, mask, scaling).transpose(1, 2).contiguous(), None

    choose: Callable[[str], None] | None = getattr(model, "set_attn_implementation", None)
    if choose is None:
        raise InputError(f"{type(model).__name__} has no attention to set: expected a Hugging Face model")
    name = f"narrowcast_{next(_NUMBERS)}"
    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, eager_mask)
    choose(name)

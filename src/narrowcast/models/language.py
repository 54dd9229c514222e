"""Language models from `transformers`: the default small Llama, or any config."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.models.quiet import quiet


def default_config(vocab: int, context: int) -> Any:
    """Return the config of a Llama of 2.0 million parameters at a vocabulary of 512.

    Widths are multiples of 128, so that every tile in use divides them.
    """
    with quiet():
        from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=max(context, 256),
        initializer_range=0.04,  # at 0.02 so narrow a model is slow to start: 5.38 against 4.72 after 220 steps
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def from_config(config: Any, seed: int, auto: str = "AutoModelForCausalLM") -> nn.Module:
    """Return a float32 model of the class ``auto`` of `transformers`, by default a causal language model.

    Weights are drawn from ``seed``; the global generator is left alone.
    """
    with quiet(), torch.random.fork_rng(devices=[]):
        import transformers

        torch.manual_seed(seed)
        maker = getattr(transformers, auto)
        model: nn.Module = maker.from_config(config, dtype=torch.float32, trust_remote_code=False)
    return model.train()


#: ``attention(q, k, v, scale)``: causal, ``q [B, H, T, D]``, ``k v [B, G, T, D]``; None where the call is not for it
CausalAttention = Callable[[Tensor, Tensor, Tensor, float | None], Tensor | None]
_NUMBERS = count()
_PLAIN = "narrowcast-causal"  # an attention without a mask of its own: `transformers` makes none


def not_plain(model: nn.Module) -> str | None:
    """Return why the attention of ``model`` is not merely causal, or None where its mask would say no more."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) not in ("sdpa", _PLAIN):
        return "it is not transformers' sdpa"
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    if set(kinds) != {"full_attention"} or windows != [None, None]:
        return "it sees a window of the tokens"
    return None


def plain_causal(model: nn.Module) -> bool:
    """Let attention be causal without a mask, where that is all that its mask would say; return whether it is so.

    `transformers` 5.24 writes the mask out when compiled by torch before 2.14 (older versions always, it says), and the
    fast kernels take none. Batches are to be whole windows, without padding.
    """
    if not_plain(model) is None:
        _set(model, _PLAIN, None)
        return True
    return False


@contextmanager
def causal_by(model: nn.Module, attention: CausalAttention) -> Iterator[None]:
    """Let ``attention`` compute whole windows without dropout inside, as `plain_causal` lets torch.

    Where it returns None torch computes. What ran before runs again afterwards.
    """
    config: Any = model.config
    before = config._attn_implementation
    _set(model, f"{_PLAIN}-{next(_NUMBERS)}", attention)  # a name with "flash" in it makes `transformers` look for one
    try:
        yield
    finally:
        setter: Any = model
        setter.set_attn_implementation(before)


def _set(model: nn.Module, label: str, attention: CausalAttention | None) -> None:
    with quiet():
        from transformers import AttentionInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        AttentionInterface.register(label, _forward(attention, sdpa_attention_forward))
        setter: Any = model
        setter.set_attn_implementation(label)


def _forward(attention: CausalAttention | None, other: Callable[..., Any]) -> Callable[..., Any]:
    """Return `transformers`' attention function by ``attention``, and by ``other`` what is not for it."""
    if attention is None:
        return other

    def forward(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        *,
        dropout: float = 0.0,
        **more: Any,
    ) -> tuple[Tensor, None]:
        made = None
        if mask is None and dropout == 0.0 and query.shape[2] == key.shape[2] and more.get("softcap") is None:
            made = attention(query, key, value, more.get("scaling"))
        if made is None:
            found: tuple[Tensor, None] = other(module, query, key, value, mask, dropout=dropout, **more)
            return found
        return made.transpose(1, 2).contiguous(), None

    return forward


def head_size(model: nn.Module) -> int | None:
    """Return the size of an attention head of a Hugging Face model, or None where its config does not say."""
    config: Any = getattr(model, "config", None)
    size: int | None = getattr(config, "head_dim", None)
    heads = getattr(config, "num_attention_heads", None)
    return size if size is not None or heads is None else config.hidden_size // heads


def compiled(model: nn.Module) -> Any:
    """Return ``model`` compiled whole, its attention causal without a mask where it can be (`plain_causal`).

    What was compiled before is forgotten: the compiler keeps at most eight versions of a forward pass, over all models
    of a process, and runs the ninth uncompiled. Each shape gets code of its own: else the code for a batch would depend
    on which others came before (a last batch of validation is smaller, and from then on sizes are variables), and a
    resumed run would end in other bits.
    """
    torch.compiler.reset()
    plain_causal(model)
    return torch.compile(model, dynamic=False)

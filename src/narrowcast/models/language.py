"""Language models from `transformers`: the default small Llama, or any config."""

from typing import Any

import torch
from torch import nn

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


_PLAIN = "narrowcast-causal"  # an attention without a mask of its own: `transformers` makes none


def plain_causal(model: nn.Module) -> bool:
    """Let attention be causal without a mask, where that is all that its mask would say; return whether it is so.

    `transformers` 5.24 writes the mask out when compiled by torch before 2.14 (older versions always, it says), and the
    fast kernels take none. Batches are to be whole windows, without padding.
    """
    config: Any = getattr(model, "config", None)
    if getattr(config, "_attn_implementation", None) != "sdpa" or getattr(config, "sliding_window", None) is not None:
        return False
    kinds = getattr(config, "layer_types", None) or ["full_attention"]
    if set(kinds) != {"full_attention"} or getattr(config, "attention_chunk_size", None) is not None:
        return False
    with quiet():
        from transformers import AttentionInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        AttentionInterface.register(_PLAIN, sdpa_attention_forward)
        setter: Any = model
        setter.set_attn_implementation(_PLAIN)
    return True


def compiled(model: nn.Module) -> Any:
    """Return ``model`` compiled whole, its attention causal without a mask where it can be (`plain_causal`).

    What was compiled before is forgotten: the compiler keeps at most eight versions of a forward pass, over all models
    of a process, and runs the ninth uncompiled.
    """
    torch.compiler.reset()
    plain_causal(model)
    return torch.compile(model)

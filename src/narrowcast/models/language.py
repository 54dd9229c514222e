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

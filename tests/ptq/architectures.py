"""Every architecture that is quantized in a test, at a tiny size, with random weights and one input of its kind."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf

SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    name: str
    make: Callable[[], torch.nn.Module]
    inputs: Callable[[int], dict[str, Any]]


def tokens(seed: int) -> dict[str, Any]:
    return {"input_ids": torch.randint(1, 96, (2, 24), generator=torch.Generator().manual_seed(seed))}


def pictures(seed: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))}


def causal(config: Any) -> Callable[[], torch.nn.Module]:
    return lambda: hf.AutoModelForCausalLM.from_config(config)


def _without(*names: str, **more: Any) -> dict[str, Any]:
    return {k: v for k, v in SMALL.items() if k not in names} | more


TABLE = [
    Architecture("llama", causal(hf.LlamaConfig(**SMALL)), tokens),
    Architecture("qwen", causal(hf.Qwen2Config(**SMALL)), tokens),
    Architecture("mistral", causal(hf.MistralConfig(**SMALL, sliding_window=16)), tokens),
    Architecture("gemma", causal(hf.Gemma2Config(**SMALL, head_dim=16, query_pre_attn_scalar=16)), tokens),
    Architecture("phi", causal(hf.PhiConfig(**_without("num_key_value_heads"))), tokens),
    Architecture("opt", causal(hf.OPTConfig(**_without("intermediate_size", "num_key_value_heads"), ffn_dim=128, word_embed_proj_dim=64)), tokens),
    Architecture("gpt2", causal(hf.GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=96, n_positions=64)), tokens),
    Architecture("bert", lambda: hf.BertForSequenceClassification(hf.BertConfig(**_without("num_key_value_heads"))), tokens),
    Architecture("vit", lambda: hf.ViTForImageClassification(hf.ViTConfig(**_without("vocab_size", "num_key_value_heads", "max_position_embeddings"), image_size=32, patch_size=8)), pictures),
    Architecture("resnet", lambda: hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")), pictures),
    Architecture("mixtral", causal(hf.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2)), tokens),
]  # fmt: skip


def built(architecture: Architecture, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return architecture.make().eval()

"""Outlier channels on purpose: large language models have them, small ones do not."""

import torch
from torch import nn

from narrowcast.errors import InputError


@torch.no_grad()
def inject_outliers(model: nn.Module, factor: float = 64.0, channels: int = 2) -> None:
    """Give the inputs of a Llama's linear layers outlier channels, in place, without changing what it computes.

    In each layer ``channels`` channels of both norms are multiplied by ``factor``, and the columns of the weights that
    read them divided by it; with a power of two that is exact. SmoothQuant (Xiao et al. 2022) undoes the like.
    Raises InputError for a model without a Llama's layers.
    """
    layers = getattr(getattr(model, "model", None), "layers", None)
    if layers is None:
        raise InputError(f"{type(model).__name__} has no model.layers; expected a Llama to give outlier channels")
    for layer in layers:
        attention, mlp = layer.self_attn, layer.mlp
        readers = {
            layer.input_layernorm: (attention.q_proj, attention.k_proj, attention.v_proj),
            layer.post_attention_layernorm: (mlp.gate_proj, mlp.up_proj),
        }
        for norm, linears in readers.items():
            chosen = norm.weight.abs().topk(channels).indices
            norm.weight[chosen] *= factor
            for linear in linears:
                linear.weight[:, chosen] /= factor

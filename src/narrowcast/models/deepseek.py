"""Two parts of DeepSeek-V3 as plain functions: latent attention and the choice of experts.

Source: "Insights into DeepSeek-V3" (ISCA 2025), section 2.3; the released `inference/model.py` for the order of steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentWeights:
    """Projections of multi-head latent attention.

    Attributes:
        query: ``[heads, nope + rope, width]``.
        down: ``[latent + rope, width]``: what is cached for a token: its latent, and one rotary key for all heads.
        key_up: ``[heads, nope, latent]``.
        value_up: ``[heads, value, latent]``.
    """

    query: Tensor
    down: Tensor
    key_up: Tensor
    value_up: Tensor


def latent_decode(weights: LatentWeights, x: Tensor, cache: Tensor, *, absorbed: bool) -> Tensor:
    """Return one new token's attention output ``[heads, value]``, its query ``x`` ``[width]``.

    Args:
        weights: the projections.
        x: the new token.
        cache: ``[tokens, latent + rope]``, the new token's among them. Rotation is left to the caller: it changes
            neither form.
        absorbed: whether keys and values are never made: the query is multiplied by ``key_up`` and compared with the
            latents themselves, and ``value_up`` is applied after the sum. The same numbers, for a cache of
            ``latent + rope`` instead of ``heads (nope + rope + value)`` a token.
    """
    latent, nope = weights.key_up.shape[2], weights.key_up.shape[1]
    query = torch.einsum("hdw,w->hd", weights.query, x)
    rotary = query[:, nope:] @ cache[:, latent:].T
    held = cache[:, :latent]
    if absorbed:
        inner = torch.einsum("hd,hdl->hl", query[:, :nope], weights.key_up) @ held.T
    else:
        keys = torch.einsum("hdl,tl->thd", weights.key_up, held)
        inner = torch.einsum("hd,thd->ht", query[:, :nope], keys)
    shares = ((inner + rotary) * query.shape[1] ** -0.5).softmax(-1)
    if absorbed:
        return torch.einsum("hvl,hl->hv", weights.value_up, shares @ held)
    values = torch.einsum("hvl,tl->thv", weights.value_up, held)
    return torch.einsum("ht,thv->hv", shares, values)


@dataclass(frozen=True)
class Router:
    """Sizes of the choice of experts, DeepSeek-V3's by default."""

    groups: int = 8
    kept_groups: int = 4
    chosen: int = 8
    scale: float = 2.5

    def route(self, scores: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Return (experts ``[tokens, chosen]``, their weights) for sigmoid ``scores`` ``[tokens, experts]``.

        ``bias`` ``[experts]`` balances loads: it counts for the choice and not for the weights. A group's score is the
        sum of its two best; experts outside the best groups are out.
        """
        biased = scores + bias
        grouped = biased.view(len(scores), self.groups, -1)
        of_group = grouped.topk(2, dim=-1).values.sum(-1)
        best = of_group.topk(self.kept_groups, dim=-1).indices
        allowed = torch.zeros_like(of_group, dtype=torch.bool).scatter_(1, best, True)
        open_ = grouped.masked_fill(~allowed[..., None], -torch.inf).flatten(1)
        experts = open_.topk(self.chosen, dim=-1).indices
        weights = scores.gather(1, experts)
        return experts, weights / weights.sum(-1, keepdim=True) * self.scale


def latent_cache_bytes(layers: int, latent: int = 512, rope: int = 64, width: int = 2) -> int:
    """Return the bytes that latent attention caches for a token."""
    return layers * (latent + rope) * width


def grouped_cache_bytes(layers: int, key_heads: int, head: int = 128, width: int = 2) -> int:
    """Return the bytes that grouped-query attention caches for a token: keys and values."""
    return 2 * layers * key_heads * head * width

"""Latent attention against attention written out, and the choice of experts against a loop."""

import torch

from narrowcast.models.deepseek import LatentWeights, Router, grouped_cache_bytes, latent_cache_bytes, latent_decode


def test_both_forms_of_latent_attention_are_attention_over_made_keys_and_values():
    g = torch.Generator().manual_seed(0)
    heads, nope, rope, value, latent, width, tokens = 3, 8, 4, 6, 10, 12, 17
    shapes = ((heads, nope + rope, width), (latent + rope, width), (heads, nope, latent), (heads, value, latent))
    w = LatentWeights(*(torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes))
    x = torch.randn(width, generator=g, dtype=torch.float64)
    cache = torch.randn(tokens, latent + rope, generator=g, dtype=torch.float64)
    q = torch.stack([w.query[h] @ x for h in range(heads)])
    keys = torch.stack([torch.cat([cache[:, :latent] @ w.key_up[h].T, cache[:, latent:]], dim=1) for h in range(heads)])
    values = torch.stack([cache[:, :latent] @ w.value_up[h].T for h in range(heads)])
    wanted = torch.nn.functional.scaled_dot_product_attention(q[:, None], keys, values)[:, 0]
    for absorbed in (False, True):
        assert torch.allclose(latent_decode(w, x, cache, absorbed=absorbed), wanted, rtol=1e-12, atol=1e-12)


def test_experts_come_from_the_best_groups_by_bias_and_weigh_by_score():
    g = torch.Generator().manual_seed(1)
    scores, bias = torch.rand(20, 16, generator=g), torch.randn(16, generator=g) / 5
    router = Router(groups=4, kept_groups=2, chosen=3, scale=2.0)
    experts, weights = router.route(scores, bias)
    for token in range(20):
        biased = (scores[token] + bias).tolist()
        groups = sorted(range(4), key=lambda i: -sum(sorted(biased[4 * i : 4 * i + 4])[-2:]))[:2]
        wanted = sorted((e for e in range(16) if e // 4 in groups), key=lambda e: -biased[e])[:3]
        assert experts[token].tolist() == wanted
        chosen = scores[token, wanted]
        assert torch.allclose(weights[token], 2.0 * chosen / chosen.sum())


def test_bytes_that_are_cached_for_a_token():
    """Table 1 of the paper: DeepSeek-V3, LLaMA-3.1 405B, Qwen2.5 72B."""
    assert (latent_cache_bytes(61), grouped_cache_bytes(126, 8), grouped_cache_bytes(80, 8)) == (70272, 516096, 327680)

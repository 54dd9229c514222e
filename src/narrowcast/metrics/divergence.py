"""How far one model's predictions are from another's."""

import torch
from torch import Tensor


def top_divergence(reference: Tensor, logits: Tensor, top: int = 25) -> float:
    """Return the mean KL divergence in nats of the two distributions over the reference's ``top`` likeliest tokens.

    Both are renormalised over those tokens, so that the long tail of unlikely ones does not count (arXiv 2510.25602).

    Args:
        reference, logits: float ``[..., vocabulary]``, of the same shape.
        top: how many tokens per position.
    """
    kept = reference.double().topk(min(top, reference.shape[-1]), dim=-1)
    p = torch.log_softmax(kept.values, -1)
    q = torch.log_softmax(logits.double().gather(-1, kept.indices), -1)
    return float((p.exp() * (p - q)).sum(-1).mean())

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


def kl_divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Return the KL divergence in nats of each prediction from the reference's, float64 ``[...]``.

    It is the expected extra code length in nats if the reference tells the truth and ``logits`` choose the code.
    Both are ``[..., classes]``.
    """
    p, q = torch.log_softmax(reference.double(), -1), torch.log_softmax(logits.double(), -1)
    return (p.exp() * (p - q)).sum(-1)


def same_top(reference: Tensor, logits: Tensor) -> Tensor:
    """Return (bool ``[...]``) whether both find the same of ``[..., classes]`` likeliest."""
    return reference.argmax(-1) == logits.argmax(-1)

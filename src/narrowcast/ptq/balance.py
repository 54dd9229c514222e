"""Moving difficulty between activations and weights: per-channel factors on the contraction axis.

``x w^T = (x / s) (w s)^T`` for any positive s ``[K]``: an exact change of basis. Dividing the activations by s is free
where the layer before can absorb it (a norm's weight, the rows of a linear layer).
SmoothQuant takes s from the maxima of both sides; AWQ searches the exponent that hurts the outputs least.
Sources: Xiao et al. 2022 (SmoothQuant, alpha 0.5); Lin et al. 2023 (AWQ, section 3.2: 20 exponents).
"""

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.ptq.search import AbsMax, Search
from narrowcast.quantize import Cast

_SMALLEST = 1e-5  # factors and maxima stop here, so that a channel that is always zero keeps the factor 1


def smooth(x_amax: Tensor, weights: list[Tensor], alpha: float = 0.5) -> Tensor:
    """Return SmoothQuant's factors ``s = amax(x) ** alpha / amax(w) ** (1 - alpha)``, float32 ``[K]``.

    Args:
        x_amax: largest magnitude of each input channel over the calibration tokens, ``[K]``.
        weights: the matrices that share this input, each ``[N, K]``.
        alpha: 0 leaves the activations as they are, 1 gives all their difficulty to the weights.

    A channel that is zero on either side keeps the factor 1.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"smooth: alpha {alpha} is out of range; expected 0 to 1")
    _check(x_amax, weights)
    w_amax = torch.stack([w.float().abs().amax(0) for w in weights]).amax(0)
    factors = x_amax.float().clamp_min(_SMALLEST) ** alpha / w_amax.clamp_min(_SMALLEST) ** (1 - alpha)
    return torch.where((x_amax > 0) & (w_amax > 0), factors, 1.0).clamp_min(_SMALLEST)


def awq(
    x_mean: Tensor,
    hessian: Tensor,
    weights: list[Tensor],
    cast: Cast,
    search: Search | None = None,
    steps: int = 20,
    duo: bool = True,
) -> tuple[Tensor, float]:
    """Return AWQ's factors, float32 ``[K]``, and the exponent that gave them.

    ``s = mean|x| ** a``, normalised to ``s / sqrt(max s * min s)``; a runs over ``steps`` values from 0 on, and the
    one with the least squared error of the outputs, ``tr(d H d^T)`` summed over the matrices, wins. With a = 0 nothing
    changes, so the result is never worse than leaving the weights alone (on the calibration tokens). With ``duo``
    ``mean|x| ** a / mean|w| ** (1 - a)`` is tried as well, w over the maximum of its row (AutoAWQ's duo scaling).
    The outputs are the matrices' own. The paper's code takes those of the attention or the MLP around them: measured,
    that wins nothing over duo scaling and takes ten times as long; nor does w over the maximum of its group (LOG.md).

    Args:
        x_mean: mean magnitude of each input channel, ``[K]``.
        hessian: ``x^T x``, ``[K, K]``.
        weights: the matrices that share this input, each ``[N, K]``.
        cast: how the weights will be quantized.
        search: how their scales are found meanwhile; the whole maximum by default, as AWQ clips only afterwards.
        steps: exponents tried: 0, 1/steps, ..., (steps-1)/steps.
        duo: whether to try both kinds of factors.
    """
    _check(x_mean, weights)
    if steps < 1:
        raise InputError(f"awq: {steps} steps; expected at least 1")
    search = search or AbsMax()
    best, least, exponent = torch.ones_like(x_mean, dtype=torch.float32), float("inf"), 0.0
    x, w = x_mean.float().clamp_min(1e-4), _mean_share(weights).clamp_min(1e-4)
    for step, also in ((step, also) for also in ((False, True) if duo else (False,)) for step in range(steps)):
        factors = _normalised(x ** (step / steps) / (w ** (1 - step / steps) if also else 1.0))
        error = sum(_damage(w.float(), factors, hessian.float(), cast, search) for w in weights)
        if error < least:
            best, least, exponent = factors, error, step / steps
    return best, exponent


def _mean_share(weights: list[Tensor]) -> Tensor:
    """Return the mean over all rows of each column's magnitude, as a share of the largest of its row, ``[K]``."""
    shares = [w.float().abs() / w.float().abs().amax(1, keepdim=True).clamp_min(1e-6) for w in weights]
    return torch.cat(shares).mean(0)


def _normalised(s: Tensor) -> Tensor:
    return (s / (s.max() * s.min()).sqrt()).clamp_min(_SMALLEST)


def _damage(w: Tensor, factors: Tensor, hessian: Tensor, cast: Cast, search: Search) -> float:
    scaled = w * factors
    balanced = hessian / (factors[:, None] * factors)
    d = search.settle(scaled, cast, balanced).apply(scaled) / factors - w
    return float(((d @ hessian) * d).sum())


def _check(channel: Tensor, weights: list[Tensor]) -> None:
    if not weights or any(w.dim() != 2 or w.shape[1] != len(channel) for w in weights):
        shapes = [tuple(w.shape) for w in weights]
        raise InputError(f"balance: weights {shapes} do not share an input of {len(channel)} channels")

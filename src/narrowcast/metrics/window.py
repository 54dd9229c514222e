"""What a language model makes of one window of text, alone or against another one: the figures that are summed up."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import cross_entropy

from narrowcast.metrics.divergence import kl_divergence, same_top

_AT_ONCE = 1 << 20  # logits in float64 at a time: 8 MB each of a handful of temporaries, whatever the vocabulary


@dataclass(frozen=True)
class WindowFigures:
    """Sums over the tokens of one window.

    Attributes:
        tokens: how many were predicted.
        loss: cross-entropy in nats.
        divergence: KL divergence from the reference in nats, 0 where there was none.
        agreed: tokens of which the reference finds the same one likeliest, 0 where there was none.
    """

    tokens: int
    loss: float
    divergence: float = 0.0
    agreed: int = 0


def window_figures(target: Tensor, logits: Tensor, reference: Tensor | None = None) -> WindowFigures:
    """Return the figures of one window, computed in float64.

    Args:
        target: int64 ``[tokens]``, what is to be predicted.
        logits: float ``[tokens, vocabulary]``.
        reference: another model's logits of the same window, or None.
    """
    step = max(1, _AT_ONCE // logits.shape[-1])
    loss, divergence, agreed = 0.0, 0.0, 0
    for start in range(0, len(target), step):
        part = slice(start, start + step)
        found = logits[part].double()
        loss += float(cross_entropy(found, target[part].to(found.device), reduction="sum"))
        if reference is not None:
            of = reference[part].to(found.device)
            divergence += float(kl_divergence(of, found).sum())
            agreed += int(same_top(of, found).sum())
    return WindowFigures(len(target), loss, divergence, agreed)

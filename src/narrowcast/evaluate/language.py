"""Two language models on one text: perplexity, KL divergence, and how often both think the same token likeliest.

Units are windows: `predictions` sums each model's figures over the tokens of a window, the bootstrap draws windows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.evaluate.findings import Comparison, Finding
from narrowcast.evaluate.rounded import in_bfloat16
from narrowcast.metrics import Interval, WindowFigures, bootstrap, mean_of, window_figures
from narrowcast.metrics.bootstrap import Statistic


@dataclass(frozen=True)
class Predictions:
    """What a model made of some windows, summed over the tokens of each.

    Attributes:
        losses: cross-entropy in nats, float64 ``[windows]``.
        tokens: tokens predicted, float64 ``[windows]``.
        divergence: KL divergence from a reference in nats, or None where there was none.
        agreed: tokens of which the reference finds the same one likeliest, or None.
        logits: of every batch ``[rows, tokens, vocabulary]``, float32, where they were kept.
    """

    losses: Tensor
    tokens: Tensor
    divergence: Tensor | None = None
    agreed: Tensor | None = None
    logits: tuple[Tensor, ...] = ()

    @property
    def perplexity(self) -> float:
        """exp of the loss per token."""
        return float((self.losses.sum() / self.tokens.sum()).exp())


@torch.no_grad()
def predictions(
    model: nn.Module, batches: list[Tensor], reference: Predictions | None = None, keep: bool = False
) -> Predictions:
    """Return what ``model`` (a causal language model) predicts of ``batches`` (int64 ``[rows, tokens + 1]``).

    Args:
        model: run in evaluation mode; left in the mode it was in.
        batches: windows behind a begin token; at least one.
        reference: kept predictions of another model on the same batches, to be compared with.
        keep: whether to keep the logits, as a later ``reference``: 4 bytes per token and entry of the vocabulary.
    """
    if not batches:
        raise InputError("nothing to evaluate: the text gave no window of tokens")
    if reference is not None and len(reference.logits) != len(batches):
        raise InputError(f"the reference kept logits of {len(reference.logits)} batches, expected {len(batches)}")
    training, found, kept = model.training, list[WindowFigures](), []
    model.eval()
    for number, batch in enumerate(batches):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits.float()
        of = [None] * len(batch) if reference is None else reference.logits[number]
        found += [window_figures(row[1:], one, other) for row, one, other in zip(batch, logits, of, strict=True)]
        kept += [logits.cpu()] if keep else []
    model.train(training)
    sums = torch.tensor([(f.loss, f.tokens, f.divergence, f.agreed) for f in found], dtype=torch.float64)
    losses, tokens, divergence, agreed = sums.unbind(1)
    compared = reference is not None
    return Predictions(losses, tokens, divergence if compared else None, agreed if compared else None, tuple(kept))


def language_findings(
    a: Predictions, b: Predictions, rounded: Predictions | None = None, draws: int = 1000, seed: int = 0
) -> list[Finding]:
    """Return what ``b`` lost against ``a``.

    Args:
        a: predictions of A.
        b: those of B, with A's as their reference.
        rounded: those of A in bfloat16, likewise; they give the noise floor.
        draws, seed: of the bootstrap.
    """
    if b.divergence is None or b.agreed is None:
        raise InputError("predictions of B have no reference: call predictions(b, batches, reference=a)")
    units = len(a.losses)

    def interval(statistic: Statistic) -> Interval:
        return bootstrap(statistic, units, draws, seed=seed)

    loss_a, loss_b = mean_of(a.losses, a.tokens), mean_of(b.losses, b.tokens)
    off: list[float | None] = [None, None, None]
    if rounded is not None and rounded.divergence is not None and rounded.agreed is not None:
        total = float(a.tokens.sum())
        off = [
            rounded.perplexity - a.perplexity,
            float(rounded.divergence.sum()) / total,
            float(rounded.agreed.sum()) / total,
        ]
    divergence, agreement = interval(mean_of(b.divergence, b.tokens)), interval(mean_of(b.agreed, b.tokens))
    return [
        Finding(
            "perplexity", a.perplexity, b.perplexity, interval(lambda w: loss_b(w).exp() - loss_a(w).exp()), off[0]
        ),
        Finding("KL divergence, nats per token", None, divergence.value, divergence, off[1]),
        Finding("top-1 agreement, share of tokens", None, agreement.value, agreement, off[2], larger_is_better=True),
    ]


def compare_language(
    a: nn.Module,
    b: nn.Module,
    batches: list[Tensor],
    data: str = "text",
    draws: int = 1000,
    seed: int = 0,
    note: Callable[[str], None] = lambda what: None,
) -> Comparison:
    """Return what language model ``b`` lost against ``a`` on ``batches``; arguments as for `predictions`.

    Three passes: A, A in bfloat16 (a copy of it is made, for the noise floor), B.
    """
    note("A")
    of_a = predictions(a, batches, keep=True)
    note("A in bfloat16")
    rounded = predictions(in_bfloat16(a), batches, of_a)
    note("B")
    found = language_findings(of_a, predictions(b, batches, of_a), rounded, draws, seed)
    return Comparison("language", data, len(of_a.losses), found)

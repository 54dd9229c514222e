"""Two classifiers on the same pictures (or texts): accuracy, KL divergence, and how often both decide alike."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.evaluate.findings import Comparison, Finding
from narrowcast.evaluate.rounded import in_bfloat16
from narrowcast.metrics import bootstrap, kl_divergence, mean_of, same_top

#: runs a classifier on a batch and returns logits ``[N, classes]``
Classify = Callable[[nn.Module, Tensor], Tensor]


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return ``model(x)``, or its ``logits`` where it returns more."""
    out = model(x)
    found: Tensor = getattr(out, "logits", out)
    return found


@torch.no_grad()
def compare_classifiers(
    a: nn.Module,
    b: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    data: str = "pictures",
    classify: Classify = logits_of,
    draws: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Return what classifier ``b`` lost against ``a``, both in evaluation mode while they run.

    Args:
        a, b: the classifiers.
        batches: (inputs, int64 labels ``[N]``) of each batch.
        data: its name, for the report.
        classify: how one is run.
        draws, seed: of the bootstrap over pictures.
    """
    held = [(x, labels) for x, labels in batches]
    if not held:
        raise InputError("nothing to evaluate: no picture was given")
    labels = torch.cat([labels for _, labels in held])
    wide, narrow, rounded = (_logits(model, held, classify) for model in (a, b, in_bfloat16(a)))
    right = [100.0 * (logits.argmax(-1) == labels).double() for logits in (wide, narrow, rounded)]
    accuracy = [float(r.mean()) for r in right]

    change = bootstrap(mean_of(right[1] - right[0]), len(labels), draws, seed=seed)
    divergence, off = kl_divergence(wide, narrow), kl_divergence(wide, rounded)
    same, alike = same_top(wide, narrow).double(), same_top(wide, rounded).double()
    found = [
        Finding("accuracy, percent", accuracy[0], accuracy[1], change, accuracy[2] - accuracy[0], True),
        _of_pair("KL divergence, nats per picture", divergence, off, draws, seed),
        _of_pair("top-1 agreement, share of pictures", same, alike, draws, seed, larger_is_better=True),
    ]
    return Comparison("classifier", data, len(labels), found)


def _of_pair(
    name: str, values: Tensor, rounded: Tensor, draws: int, seed: int, larger_is_better: bool = False
) -> Finding:
    interval = bootstrap(mean_of(values), len(values), draws, seed=seed)
    return Finding(name, None, interval.value, interval, float(rounded.mean()), larger_is_better)


def _logits(model: nn.Module, batches: list[tuple[Tensor, Tensor]], classify: Classify) -> Tensor:
    training = model.training
    model.eval()
    found = torch.cat([classify(model, x).float().cpu() for x, _ in batches])
    model.train(training)
    return found

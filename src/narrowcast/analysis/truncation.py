"""A sweep of narrow storage: many small networks trained at once, each with its parameters rounded after every batch.

The sweep of sheet 84 (Li et al. 2018): accuracy against mantissa and exponent bits, rounding and learning rate.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.formats import Format, Stream, format, rounding
from narrowcast.models.stacked import StackedMlp
from narrowcast.workloads.images import Images

WIDE_BITS = 23  # mantissa bits of a run whose parameters stay float32


@dataclass(frozen=True)
class Run:
    """One column of the sweep: what the parameters are rounded to after each batch, and the learning rate."""

    exponent: int = 8
    mantissa: int = WIDE_BITS
    mode: str = "nearest-even"
    rate: float = 0.1

    @property
    def format(self) -> Format:
        """The format of the parameters."""
        return format(f"e{self.exponent}m{self.mantissa}")


@dataclass(frozen=True)
class Trained:
    """What came of the runs of one shape: test accuracy in percent and size of the weights, ``[runs, seeds]``."""

    runs: list[Run]
    accuracy: Tensor
    size: Tensor
    network: StackedMlp

    def of(self, run: Run) -> float:
        """Mean accuracy of a run over its seeds."""
        return float(self.accuracy[self.runs.index(run)].mean())

    def shrunk(self, run: Run) -> float:
        """Size of a run's weights relative to those of float32."""
        return float(self.size[self.runs.index(run)].mean() / self.size[self.runs.index(Run())].mean())


@torch.no_grad()
def _truncate(network: StackedMlp, runs: list[Run], step: int, seed: int) -> None:
    """Round each run's parameters in place; the random bits of a run are its own."""
    for number, run in enumerate(runs):
        if run.mantissa < WIDE_BITS:
            mode = rounding(run.mode)
            for place, parameter in enumerate(network.parameters()):
                stream = Stream(seed, number << 8 | place, step)
                draws = stream.bits(parameter[number].shape) if mode.random else None
                parameter[number] = run.format.round(parameter[number], mode, draws)


def sweep(
    runs: list[Run],
    train: Images,
    test: Images,
    hidden: tuple[int, ...],
    *,
    seeds: list[int],
    batch: int = 64,
    epochs: int = 3,
    steps: int = 0,
) -> Trained:
    """Train every run under every seed at once: plain SGD in float32, all parameters rounded after each batch.

    Args:
        runs: the columns.
        train, test: pictures of ten classes.
        hidden: widths of the hidden layers.
        seeds: of the weights and the order of the batches; the first keys the random bits.
        batch, epochs: how long; ``steps``, if any, instead of whole epochs.
    """
    pixels, labels = train.pixels.flatten(1), train.labels
    network = StackedMlp((len(runs), len(seeds)), (pixels.shape[1], *hidden, 10), seeds)
    orders = torch.stack([torch.randperm(len(train), generator=torch.Generator().manual_seed(s)) for s in seeds])
    rates = torch.tensor([run.rate for run in runs]).view(-1, 1, 1, 1)
    whole = len(train) // batch
    _truncate(network, runs, 0, seeds[0])
    for step in range(steps or epochs * whole):
        picked = orders[:, step % whole * batch :][:, :batch]
        _update(network, pixels[picked], labels[picked], rates)
        _truncate(network, runs, step + 1, seeds[0])
    with torch.no_grad():
        right = network(test.pixels.flatten(1)).argmax(-1) == test.labels
        size = torch.stack([w.square().sum((-2, -1)) for w in network.weights]).sum(0).sqrt()
    return Trained(runs, right.float().mean(-1) * 100, size, network)


def _update(network: StackedMlp, pixels: Tensor, labels: Tensor, rates: Tensor) -> None:
    """Take one step of SGD, ``pixels [seeds, batch, inputs]``."""
    logits = network(pixels)
    labels = labels.expand(logits.shape[:-1])
    F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum").div(labels.shape[-1]).backward()
    with torch.no_grad():
        for parameter in network.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad * rates)
            parameter.grad = None


def cliff(bits: Sequence[int], accuracies: Sequence[float], full: float, share: float = 0.95) -> float:
    """Return the bits at which accuracy crosses ``share`` of ``full``, the last time as bits grow.

    Interpolated between whole bits; the first or last of ``bits`` where it is above or below throughout.
    """
    enough = share * full
    for i in range(len(bits) - 1, 0, -1):
        low, high = accuracies[i - 1], accuracies[i]
        if low < enough <= high:
            return bits[i - 1] + (bits[i] - bits[i - 1]) * (enough - low) / (high - low)
    return float(bits[0] if accuracies[0] >= enough else bits[-1])

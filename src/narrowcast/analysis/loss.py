"""What a cast loses of a tensor. Shares are of the source elements that are not zero (padding is):

- *SQNR*: 10 log10 (sum of squares of the source / sum of squares of the error) in dB; None where nothing is lost;
- *underflow*: share of elements that became zero;
- *saturate*: share of elements that the format's range clipped: scaled, they lie beyond its largest value by more than
  half the step below it (more than rounding would have moved them).
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from narrowcast.formats import Stream
from narrowcast.formats.format import float32_of
from narrowcast.quantize import Cast

_CHUNK = 1 << 22  # elements looked at in float64 at a time: 32 MiB


@dataclass(frozen=True)
class Loss:
    """What one tensor lost; the module defines the shares.

    Attributes:
        signal, noise: sums of squares of the source and of the error, which add up over tensors.
        max_error: largest absolute error.
        underflow, saturate: shares between 0 and 1.
    """

    signal: float
    noise: float
    max_error: float
    underflow: float
    saturate: float

    @property
    def sqnr_db(self) -> float | None:
        """In decibels; None where nothing is lost, or the result is not finite."""
        return decibels(self.signal, self.noise)

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"sqnr_db": self.sqnr_db, **asdict(self)}


def narrowed(cast: Cast, x: Tensor, seed: int = 0) -> tuple[Tensor, Loss]:
    """Return what ``x`` becomes (float32, of its shape) and what is lost; the latter in the basis that the cast sees.

    ``x`` is filled up with zeros to a multiple of the transform's size. A delayed scale is judged on its first step.
    """
    stream, basis = Stream(seed), cast.transform
    history = cast.scale.delayed.new() if cast.scale.delayed else None
    if basis is None:
        result = cast.apply(x, stream, history)
        return result, measure(x, result, cast)
    inner = replace(cast, transform=None)
    source = basis.forward(F.pad(float32_of(x), (0, -x.shape[-1] % basis.size)), stream)
    result = inner.apply(source, stream, history)
    return basis.inverse(result, stream)[..., : x.shape[-1]], measure(source, result, inner)


def measure(source: Tensor, result: Tensor, cast: Cast, history: Tensor | None = None) -> Loss:
    """Return what ``result``, which ``cast`` made of ``source``, lost.

    Args:
        source, result: any float dtype and shape, padded and rotated as the cast saw and left them.
        cast: the cast.
        history: amax history of a delayed scale as it was when the cast ran; it is left as it is.
    """
    signal = noise = largest = 0.0
    count = gone = 0
    for x, y in zip(source.flatten().split(_CHUNK), result.flatten().split(_CHUNK), strict=True):
        error = x.double() - y.double()
        signal, noise = signal + _energy(x), noise + _energy(error)
        largest = max(largest, float(error.abs().max()))
        count, gone = count + int((x != 0).sum()), gone + int(((x != 0) & (y == 0)).sum())
    if count == 0:
        return Loss(signal, noise, largest, 0.0, 0.0)
    return Loss(signal, noise, largest, gone / count, clipped(source, cast, history) / count)


def _energy(x: Tensor) -> float:
    return float(x.double().square().sum())


def decibels(signal: float, noise: float) -> float | None:
    """Return ``10 log10(signal / noise)``; None where there is no noise or no signal, or either is not finite."""
    if not (noise > 0 and signal > 0 and math.isfinite(noise) and math.isfinite(signal)):
        return None
    return 10 * math.log10(signal / noise)


def sqnr_db(source: Tensor, result: Tensor) -> float | None:
    """Return the signal to quantization noise ratio in dB, None where exact or not finite."""
    return decibels(_energy(source), _energy(source.double() - result.double()))


def clipped(source: Tensor, cast: Cast, history: Tensor | None = None) -> int:
    """Return how many elements of ``source`` the format's range clipped, from the scales that the cast used."""
    if cast.is_identity:
        return 0
    blocks, inside = cast.tile.blocks(cast.tile.padded(source.float()))
    amax = cast.scale.extent(blocks, inside)
    if cast.scale.delayed is not None and history is not None:
        amax = cast.scale.delayed.amax(history.clone(), amax.amax()).view(amax.shape)
    scaled = cast.scale.scale(amax, cast.format).scaled(blocks).abs()  # in float32, as the cast saw it
    half_step = 2.0 ** (cast.format.top_exponent - cast.format.precision - 1)
    return int((scaled > cast.format.max + half_step).sum())

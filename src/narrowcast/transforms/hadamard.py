"""Block Hadamard transforms, with or without random signs.

``x -> x diag(s) H / sqrt(n)`` on each run of n elements of the last axis: an orthonormal change of basis that spreads
an outlier over its block. Signs come first: applied after H they would leave every magnitude unchanged. Where both
operands of a gemm carry the same transform along the contraction axis it cancels.

H is applied by butterflies in a fixed order, and the factor 1/sqrt(n) last, so that every device gives the same bits.
Sources: Tseng et al. 2025 (sheet 61); NVIDIA 2025, "Pretraining LLMs with NVFP4" (sheet 25).
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Stream
from narrowcast.formats.views import split_axis

# The fixed sign vector that TransformerEngine ships for its 16-wide transform (sheet 25, golden checks).
_TE_SIGNS_16 = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)
_SIGNS = ("none", "fixed", "fresh")


@dataclass(frozen=True)
class Hadamard:
    """An orthonormal Hadamard transform of ``size`` (a power of two) along the last axis.

    Attributes:
        size: block length n.
        signs: ``none``; ``fixed``, one vector for ever; or ``fresh``, drawn from the stream at every call.
    """

    size: int
    signs: str = "none"

    def __post_init__(self) -> None:
        if self.size < 2 or self.size & (self.size - 1):
            raise InputError(f"hadamard{self.size}: the size must be a power of two, at least 2")
        if self.signs not in _SIGNS:
            raise InputError(f"hadamard signs {self.signs!r}: expected one of {', '.join(_SIGNS)}")

    def forward(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """Rotate ``x`` [..., K], K a multiple of ``size``; float32 in, float32 out."""
        blocks = self._blocks(x)
        if self.signs != "none":
            blocks = blocks * self.sign_vector(stream, x.device)
        return self._butterflies(blocks).view(x.shape)

    def inverse(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        """Undo `forward` (H is symmetric and orthonormal; the signs are their own inverse)."""
        blocks = self._butterflies(self._blocks(x))
        if self.signs != "none":
            blocks = blocks * self.sign_vector(stream, x.device)
        return blocks.view(x.shape)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise InputError where blocks do not fit the last axis of ``shape``."""
        if shape[-1] % self.size:
            raise InputError(f"{self} does not divide the last axis of shape {tuple(shape)}; pad it first")

    def _blocks(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape))
        return split_axis(x, -1, self.size)

    def _butterflies(self, blocks: Tensor) -> Tensor:
        half = 1
        while half < self.size:
            low, high = split_axis(split_axis(blocks, -1, half), -2, 2).unbind(-2)
            blocks = torch.stack([low + high, low - high], dim=-2).flatten(-3)
            half *= 2
        return blocks * (1 / math.sqrt(self.size))

    def sign_vector(self, stream: Stream | None, device: torch.device | None = None) -> Tensor:
        """Return the signs, float32 ``[size]`` of 1 and -1; fresh ones are the first draws of ``stream``."""
        if self.signs == "fixed" and self.size == 16:
            return torch.tensor(_TE_SIGNS_16, dtype=torch.float32, device=device)
        if self.signs == "fixed":
            stream = Stream()
        if stream is None:
            raise InputError(f"{self} draws its signs: pass seed= or a Stream")
        return 1.0 - 2.0 * (stream.bits((self.size,), device=device) & 1).float()

    def __str__(self) -> str:
        return f"hadamard{self.size}" + ("" if self.signs == "none" else f"-{self.signs}")


def transform(text: str) -> Hadamard:
    """Parse ``hadamardN``, ``hadamardN-fixed`` or ``hadamardN-fresh``."""
    found = re.fullmatch(r"hadamard(\d+)(?:-(fixed|fresh))?", text)
    if found is None:
        raise InputError(f"unknown transform {text!r}: expected hadamardN, hadamardN-fixed or hadamardN-fresh")
    return Hadamard(int(found[1]), found[2] or "none")

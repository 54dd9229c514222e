"""DeepSeek's LogFMT: each tile has a logarithmic grid of its own, from its smallest magnitude to its largest.

Of n bits one is the sign; K = 0 is zero and K = 1 ... 2**(n-1) - 1 are the magnitudes 2**(low + step (K - 1)), where
low = log2 of the tile's smallest magnitude, but at most 32 below that of its largest, and the last K is the largest. A
magnitude goes to the nearer of its two neighbours *in value*, not in the logarithm, so that errors do not add up.

Source: "Insights into DeepSeek-V3" (ISCA 2025), section 3.2; natural logarithms there. Meant for messages between GPUs;
powers are those of `expansion`, the same bits on every device.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Stream, pack, unpack
from narrowcast.scaling.scales import SMALLEST
from narrowcast.storage.expansion import exp2, log2
from narrowcast.storage.storage import Storage, Stored

_SPAN = 32.0  # binades at most


@dataclass(frozen=True)
class LogTile(Storage):
    """Codes of ``bits`` bits: parts ``codes`` (packed), ``largest`` and ``step`` (float32, one each for a tile).

    A tile of zeros has step 0; one with a NaN or an infinity comes back as NaN.
    """

    bits: int
    group: int = 128

    def __post_init__(self) -> None:
        if not (3 <= self.bits <= 16 and self.group >= 8 and self.group % 8 == 0):
            raise InputError(f"storage {self}: expected 3 to 16 bits and tiles of a multiple of 8")

    @property
    def steps(self) -> int:
        """Steps from the smallest magnitude to the largest."""
        return (1 << (self.bits - 1)) - 2

    def store(self, x: Tensor, stream: Stream | None = None) -> Stored:
        """Return ``codes``, ``largest`` and ``step``."""
        tiles = F.pad(x, (0, -x.numel() % self.group)).view(-1, self.group)
        magnitude = tiles.abs()
        largest = magnitude.amax(1, keepdim=True)
        some = (largest >= SMALLEST) & (largest < math.inf)
        share = magnitude / torch.where(some, largest, 1.0)
        depth = log2(share.clamp_min(SMALLEST)).clamp_(-_SPAN, 0.0).masked_fill_(magnitude == 0, 0.0)
        step = depth.amin(1, keepdim=True).neg_() * (1 / self.steps)
        below = self._below(depth, step)
        code = below + self._nearer_above(share, below, step)
        code = torch.where((magnitude == 0) | ~some, 0, code)
        codes = code.int() | (tiles.signbit().int() << (self.bits - 1))
        largest = torch.where(some, largest, torch.where(largest < SMALLEST, 0.0, math.nan))
        return {"codes": pack(codes.flatten(), self.bits), "largest": largest.flatten(), "step": step.flatten()}

    def _below(self, depth: Tensor, step: Tensor) -> Tensor:
        """Return K of the neighbour at or below each logarithm, 1 at least."""
        up = torch.where(step > 0, depth / torch.where(step > 0, step, 1.0), 0.0)
        return (self.steps + 1 + up.floor()).clamp_(1, self.steps + 1)

    def _nearer_above(self, share: Tensor, below: Tensor, step: Tensor) -> Tensor:
        """Return -1, 0 or 1: whether the value below (zero below K = 1) or above is nearer than K's own."""
        here, above = self._share(below, step), self._share((below + 1).clamp_max(self.steps + 1), step)
        move = (share - here > above - share).float()
        return torch.where((below == 1) & (share < here * 0.5), -1.0, move)

    def _share(self, code: Tensor, step: Tensor) -> Tensor:
        """Return magnitudes as shares of the largest."""
        return exp2((code - (self.steps + 1)) * step)

    def load(self, stored: Mapping[str, Tensor], count: int) -> Tensor:
        """Return the values."""
        tiles = stored["largest"].numel()
        codes = unpack(stored["codes"], self.bits, tiles * self.group).view(tiles, self.group)
        code = codes & ((1 << (self.bits - 1)) - 1)
        share = self._share(code.float(), stored["step"].view(-1, 1)).masked_fill_(code == 0, 0.0)
        share = torch.where(codes >> (self.bits - 1) == 1, -share, share)
        return share.mul_(stored["largest"].view(-1, 1)).flatten()[:count]

    def bits_per_element(self, count: int) -> float:
        """Return the code's bits and a tile's share of 64."""
        return self.bits + 64.0 * -(-count // self.group) / count if count else float(self.bits)

    def __str__(self) -> str:
        return f"logfmt{self.bits}/1x{self.group}+pad"

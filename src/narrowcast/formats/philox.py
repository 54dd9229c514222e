"""Counter-based random bits: Philox 4x32-10.

A draw is a pure function of (seed, tensor, step, element): no state, no order, no device. A shard of a tensor draws
exactly the bits that the whole tensor would have drawn there, and a resumed run draws what it would have drawn.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); checked against its known answers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats.pieces import PIECE, by_pieces

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_DRAWS_PER_COUNTER = 8  # four 32-bit words, two 16-bit draws in each

Word = Tensor | int


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Return the four 32-bit words of Philox 4x32-10 at ``counter`` under ``key``.

    Words are int64 tensors (any broadcastable shapes) or ints holding unsigned 32-bit values.
    """
    device = next((c.device for c in counter if isinstance(c, Tensor) and c.dim()), None)
    c0, c1, c2, c3 = (torch.as_tensor(c, device=device) for c in counter)
    k0, k1 = key
    for _ in range(_ROUNDS):
        # int64 products wrap, but their low 64 bits are right: shift and mask read them as unsigned. (Stacking even
        # and odd words halves the operations, but Inductor 2.13 miscompiles it: element 1 of 8 came out wrong.)
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _MASK) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32 & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return tuple(torch.broadcast_tensors(c0, c1, c2, c3))


@dataclass(frozen=True)
class Stream:
    """A source of 16-bit draws for one tensor at one step.

    Attributes:
        seed: 64-bit key, shared by a whole run.
        tensor: 32-bit identity of the tensor (layer and operand).
        step: 32-bit counter; a 0-d int64 tensor where it advances inside a compiled program.
    """

    seed: int = 0
    tensor: int = 0
    step: Word = 0

    def bits(
        self,
        shape: Sequence[int],
        *,
        device: torch.device | str | None = None,
        whole: Sequence[int] | None = None,
        start: Sequence[int] | None = None,
    ) -> Tensor:
        """Return int32 draws in [0, 2**16) of the given shape.

        Args:
            shape: shape of the piece wanted.
            device: where to compute them; the values do not depend on it.
            whole, start: shape of the whole tensor and index of the piece's first element in it, where the piece is
                a shard. Element ``i`` of the whole tensor (row-major) always gets draw ``i``.
        """
        if whole is None:
            return self._draws(tuple(shape), device)
        start = start if start is not None else (0,) * len(whole)
        if len(shape) != len(whole) or any(s + n > w for s, n, w in zip(start, shape, whole, strict=True)):
            raise InputError(f"piece of shape {tuple(shape)} at {tuple(start)} lies outside {tuple(whole)}")
        index = torch.zeros((), dtype=torch.int64, device=device)
        for first, size, extent in zip(start, shape, whole, strict=True):
            along = torch.arange(first, first + size, device=device)
            index = index[..., None] * extent + along
        return self._at(index)

    def _key(self) -> tuple[int, int]:
        return self.seed & _MASK, self.seed >> 32 & _MASK

    def _words(self, block: Tensor) -> tuple[Tensor, ...]:
        return philox((block & _MASK, block >> 32, self.tensor & _MASK, self.step), self._key())

    def _draws(self, shape: tuple[int, ...], device: torch.device | str | None) -> Tensor:
        count = 1
        for size in shape:
            count *= size
        blocks = -(-count // _DRAWS_PER_COUNTER)
        block = torch.arange(blocks, dtype=torch.int64, device=device)
        pairs = by_pieces(lambda some, _: self._pairs(some), block, piece=PIECE // 2)  # elements of twice the size
        return pairs.view(torch.int32).flatten()[:count].view(shape)

    def _pairs(self, block: Tensor) -> Tensor:
        """Return ``[..., 4]`` int64 with two draws in each, the first in its low half.

        An int32 view then parts them (on little-endian machines). That halves the stores: a compiled rounding with its
        draws takes 2.7 clones, against 4.5 with one draw in each.
        """
        return torch.stack([word & 0xFFFF | word >> 16 << 32 for word in self._words(block)], dim=-1)

    def _at(self, index: Tensor) -> Tensor:
        words = torch.stack(self._words(index // _DRAWS_PER_COUNTER), dim=-1)
        lane = index % _DRAWS_PER_COUNTER
        word = words.gather(-1, (lane // 2)[..., None]).squeeze(-1)
        return (word >> (16 * (lane % 2)) & 0xFFFF).int()

"""Look-ups in matrices that stay in their file, and products with them, a few rows at a time.

The embedding and the output head of a language model can each be larger than a block. While they are looked up or
multiplied by, only the rows at hand are in memory.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from narrowcast.io.weights import Stored


class Rowwise(TorchFunctionMode):
    """While it is entered, ``F.embedding`` and ``F.linear`` read the rows of certain weights from their files.

    Args:
        stored: where a weight lies, by the identity of the parameter that stands for it (without memory).
        budget: bytes of float32 rows that may be in memory at a time.
        device: where rows go.
        note: told of the bytes that are in memory.
    """

    def __init__(
        self, stored: Mapping[int, Stored], budget: int, device: torch.device, note: Callable[[int], object]
    ) -> None:
        super().__init__()
        self.stored, self.budget, self.device, self.note = stored, budget, device, note

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func``, from the file where its weight is one of those."""
        stored = self.stored.get(id(args[1])) if func in (F.embedding, F.linear) and len(args) > 1 else None
        if stored is None:
            return func(*args, **(kwargs or {}))
        if func is F.embedding:
            return self._looked_up(args[0], stored)
        bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
        return self._multiplied(args[0], stored, bias)

    def _looked_up(self, ids: Tensor, stored: Stored) -> Tensor:
        wanted, place = ids.unique(return_inverse=True)
        rows = stored.picked(wanted.tolist()).to(self.device, torch.float32)
        self.note(rows.nbytes)
        return rows[place]

    def _multiplied(self, x: Tensor, stored: Stored, bias: Tensor | None) -> Tensor:
        count, columns = stored.shape
        step = max(1, self.budget // (4 * columns))
        out = x.new_empty(*x.shape[:-1], count)
        for start in range(0, count, step):
            stop = min(start + step, count)
            rows = stored.rows(start, stop).to(self.device, torch.float32)
            self.note(rows.nbytes)
            out[..., start:stop] = F.linear(x, rows, None if bias is None else bias[start:stop])
        return out

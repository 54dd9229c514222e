"""Work of the backward pass that a compiler must leave there.

It sees both passes as one graph. What the backward pass makes again from what is kept, it finds to be what the forward
pass made already, and keeps that instead, wide as it may be. `later` ties such work to the gradient: it cannot be done
before that is there. The tie is an exclusive or with a zero that nobody can see through; the compiler joins it to what
follows, so nothing is copied.
"""

from typing import TypeVar

import torch
from torch import Tensor

Maybe = TypeVar("Maybe", Tensor, Tensor | None)
_WORDS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def later(x: Maybe, after: Tensor | None) -> Maybe:
    """Return ``x``; in compiled code not before ``after`` is there."""
    if x is None or after is None or not torch.compiler.is_compiling():
        return x
    zero: Tensor = torch.ops.narrowcast.zero_after(after)
    if x.dtype not in _WORDS:
        return x ^ zero.to(x.dtype)
    word = _WORDS[x.dtype]
    return (x.view(word) ^ zero.to(word)).view(x.dtype)


@torch.library.custom_op("narrowcast::zero_after", mutates_args=())
def _zero_after(after: Tensor) -> Tensor:
    return after.new_zeros(1, dtype=torch.uint8)


@_zero_after.register_fake
def _(after: Tensor) -> Tensor:
    return after.new_empty(1, dtype=torch.uint8)

"""Text that a language model writes, token by token."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError

#: takes the logits ``[batch, vocabulary]`` of the next token and returns the token of each row, int64 ``[batch, 1]``
Pick = Callable[[Tensor], Tensor]


def likeliest(logits: Tensor) -> Tensor:
    """Pick the likeliest token, the first of equals."""
    return logits.argmax(-1, keepdim=True)


def drawn(draws: torch.Generator) -> Pick:
    """Return a pick that draws each token from the model's own prediction."""
    return lambda logits: torch.multinomial(torch.softmax(logits, -1), 1, generator=draws)


@torch.no_grad()
def write(model: nn.Module, ids: Tensor, length: int, pick: Pick = likeliest) -> Tensor:
    """Return ``ids`` ``[batch, n]`` continued to ``length`` tokens each, int64 ``[batch, length]``, on the CPU."""
    device = next(model.parameters()).device
    past: dict[str, Any] = {}
    last = ids
    while ids.shape[1] < length:
        out = model(input_ids=last.to(device), use_cache=True, **past)
        past = _past(out)
        last = pick(out.logits[:, -1].float().cpu())
        ids = torch.cat([ids, last], 1)
    return ids


def _past(out: Any) -> dict[str, Any]:
    """Return what was cached under the name that this version of `transformers` has for it."""
    name = "cache" if "cache" in out else "past_key_values"
    if out.get(name) is None:
        raise InputError("the model keeps no cache of what it has read; give calibration text with --data")
    return {name: out[name]}

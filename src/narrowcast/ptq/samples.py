"""What a model writes before and after it was quantized, from the same beginnings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from narrowcast.models.generate import write
from narrowcast.workloads.tokens import load_tokenizer

_PROMPTS, _BEGINNING, _WRITTEN = 3, 12, 48


def beginnings(held: Sequence[Tensor]) -> list[Tensor]:
    """Return the first tokens ``[1, 12]`` of a few windows of ``held``."""
    rows = [row[None, :_BEGINNING] for batch in held for row in batch if len(row) > _BEGINNING]
    return rows[:: max(1, len(rows) // _PROMPTS)][:_PROMPTS]


def continued(model: nn.Module, prompts: Sequence[Tensor], tokenizer: Path) -> list[str]:
    """Return what ``model`` writes after each of ``prompts``, the likeliest token each time, without the prompts."""
    decoder = load_tokenizer(tokenizer)
    found = []
    for prompt in prompts:
        ids = write(model, prompt, prompt.shape[1] + _WRITTEN)[0].tolist()
        whole, begun = decoder.decode(ids), decoder.decode(ids[: prompt.shape[1]])
        found.append(whole[len(begun) :] if whole.startswith(begun) else whole)
    return found


def side_by_side(
    prompts: Sequence[Tensor], before: Sequence[str], after: Sequence[str], tokenizer: Path
) -> list[dict[str, Any]]:
    """Return the samples as plain values, with the number of characters that agree from the start."""
    decoder = load_tokenizer(tokenizer)
    rows = []
    for prompt, one, other in zip(prompts, before, after, strict=True):
        same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
        rows.append({"prompt": decoder.decode(prompt[0].tolist()), "before": one, "after": other, "same": same})
    return rows

"""TinyStories: the text that the smallest real language models are measured on."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.workloads.tokens import encode, load_tokenizer

_END = "<|endoftext|>"


@dataclass(frozen=True)
class Stories:
    """The beginnings of stories as token ids.

    Attributes:
        tokens: int64 ``[1, <= length + 1]`` each, a begin token in front.
        sizes: bytes of the text that the ids behind each begin token stand for.
    """

    tokens: tuple[Tensor, ...]
    sizes: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of all of them."""
        return sum(self.sizes)

    def halves(self) -> "tuple[Stories, Stories]":
        """Return the first half and the second."""
        half = len(self.tokens) // 2
        return Stories(self.tokens[:half], self.sizes[:half]), Stories(self.tokens[half:], self.sizes[half:])

    @property
    def batches(self) -> list[Tensor]:
        """The same rows, in batches of one length, in order of first appearance."""
        by_length: dict[int, list[Tensor]] = {}
        for row in self.tokens:
            by_length.setdefault(row.shape[1], []).append(row)
        return [torch.cat(rows) for rows in by_length.values()]


def tiny_stories(text: Path, tokenizer: Path, *, length: int = 127, limit: int = 0, start: int = 1) -> Stories:
    """Return the first ``length`` tokens of each story of a text file in which ``<|endoftext|>`` parts them.

    Args:
        text: e.g. ``tinystories_val100.txt``; stories of fewer than two tokens are left out.
        tokenizer: a tokenizer.json.
        length: ids of a story that count.
        limit: at most so many stories, 0 for all.
        start: the begin token.
    """
    try:
        stories = [part.strip() for part in text.read_text(encoding="utf-8").split(_END) if part.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{text}: cannot be read as text ({error})") from None
    ids = [row[:length] for row in encode(tuple(stories[: limit or None]), tokenizer) if len(row) > 1]
    decoder = load_tokenizer(tokenizer)
    sizes = tuple(len(decoder.decode(row).encode()) for row in ids)
    return Stories(tuple(torch.tensor([[start, *row]]) for row in ids), sizes)

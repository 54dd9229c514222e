"""Sentence pairs with a human's score of how alike they are (SemEval's STS): what sentence encoders are judged on."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from narrowcast.errors import InputError


@dataclass(frozen=True)
class SentencePairs:
    """Sentences in pairs.

    Attributes:
        first, second: the sentences.
        scores: how alike people find them, float64 ``[pairs]``.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: Tensor

    def __len__(self) -> int:
        return len(self.first)

    def head(self, count: int) -> "SentencePairs":
        """Return the first ``count``."""
        return SentencePairs(self.first[:count], self.second[:count], self.scores[:count])


def sentence_pairs(path: Path) -> SentencePairs:
    """Return the scored pairs of a file whose lines are ``score<tab>sentence<tab>sentence``; others have no score.

    InputError for a line of fewer fields or a score that is no number, and for a file without a scored pair.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error})") from None
    rows = []
    for number, line in enumerate(lines, 1):
        fields = line.split("\t")
        if len(fields) < 3:
            raise InputError(f"{path}:{number}: found {len(fields)} fields, expected score<tab>sentence<tab>sentence")
        if not fields[0].strip():
            continue
        try:
            rows.append((float(fields[0]), fields[1], fields[2]))
        except ValueError:
            raise InputError(f"{path}:{number}: score {fields[0]!r} is no number") from None
    if len(rows) < 2:
        raise InputError(f"{path}: {len(rows)} scored pairs; expected at least two")
    scores, first, second = zip(*rows, strict=True)
    return SentencePairs(first, second, torch.tensor(scores, dtype=torch.float64))

"""Sentence encoders: the mean of a transformer's last hidden states over a sentence's tokens, at unit length.

Source: Reimers & Gurevych 2019, "Sentence-BERT", section 3 (mean pooling).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_LONGEST = 128  # tokens of a sentence that count


class SentenceEncoder:
    """A transformer and its tokenizer.

    Attributes:
        model: a Hugging Face encoder whose output has ``last_hidden_state``.
    """

    def __init__(self, model: nn.Module, tokenizer: Path) -> None:
        from tokenizers import Tokenizer

        self.model = model
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(_LONGEST)
        self._tokenizer.enable_padding()

    def batches(self, sentences: tuple[str, ...], size: int = 64) -> list[dict[str, Tensor]]:
        """Return the model's inputs for ``sentences``, each with the special tokens that the tokenizer adds."""
        found = []
        for start in range(0, len(sentences), size):
            rows: list[Any] = self._tokenizer.encode_batch(list(sentences[start : start + size]))
            ids, mask = torch.tensor([r.ids for r in rows]), torch.tensor([r.attention_mask for r in rows])
            found.append({"input_ids": ids, "attention_mask": mask})
        return found

    @torch.no_grad()
    def embed(self, sentences: tuple[str, ...], model: nn.Module | None = None) -> Tensor:
        """Return one vector of length 1 per sentence, ``[N, width]``, by ``model`` (its own by default)."""
        chosen = self.model if model is None else model
        rows = []
        for batch in self.batches(sentences):
            hidden = chosen(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].to(hidden.dtype)
            rows.append(nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(rows)

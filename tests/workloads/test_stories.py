"""Stories as tokens, and losses by row."""

import pytest
import torch
from torch import nn

from narrowcast.errors import InputError
from narrowcast.metrics import losses_by_row, next_token_loss
from narrowcast.workloads import load_corpus
from narrowcast.workloads.stories import tiny_stories
from narrowcast.workloads.tokens import tokenize


@pytest.fixture
def tokenizer(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("one story about a cat. " * 400)
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenize(load_corpus(text), 300).tokenizer)
    return path


def test_stories_are_cut_counted_and_batched_by_length(tmp_path, tokenizer):
    text = tmp_path / "stories.txt"
    text.write_text(
        "one story about a cat\n<|endoftext|>\na cat about a cat about a cat\n<|endoftext|>\n\n<|endoftext|>a\n"
    )
    whole = tiny_stories(text, tokenizer, length=100)
    assert len(whole.tokens) == 2 and all(row[0, 0] == 1 for row in whole.tokens)
    assert whole.size == len("one story about a cat" + "a cat about a cat about a cat")
    cut = tiny_stories(text, tokenizer, length=3, start=5)
    assert [row.shape for row in cut.tokens] == [(1, 4)] * 2 and cut.size < whole.size
    assert [b.shape for b in cut.batches] == [(2, 4)]
    assert len(tiny_stories(text, tokenizer, limit=1).tokens) == 1
    first, second = whole.halves()
    assert (first.size, second.size) == (len("one story about a cat"), len("a cat about a cat about a cat"))
    with pytest.raises(InputError, match="cannot be read as text"):
        tiny_stories(tmp_path / "no.txt", tokenizer)


def test_losses_by_row_average_to_the_loss():
    class Model(nn.Module):
        def forward(self, input_ids, use_cache):
            return type("Output", (), {"logits": nn.functional.one_hot(input_ids, 8).float() * 3})

    tokens = torch.arange(12).view(3, 4) % 8
    rows = losses_by_row(Model(), tokens)
    assert rows.shape == (3,) and rows.dtype == torch.float64
    assert float(rows.mean()) == pytest.approx(float(next_token_loss(Model(), tokens)), rel=1e-6)

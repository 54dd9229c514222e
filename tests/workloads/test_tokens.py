"""Token ids: every byte of a corpus comes back, also where the BPE saw a part of it only."""

from pathlib import Path

import pytest
import torch

from narrowcast.workloads import load_corpus, tokenize
from narrowcast.workloads import tokens as module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "text").mkdir()
    for n in range(40):
        (tmp_path / "text" / f"{n}.py").write_text(f"def f{n}(x):\n    return x + {n}  # h\u00e9 {'word ' * n}\n" * 9)
    return tmp_path / "text"


@pytest.mark.parametrize("sample", [16_000_000, 5000])
def test_ids_decode_to_the_text(folder: Path, monkeypatch: pytest.MonkeyPatch, sample: int) -> None:
    from tokenizers import Tokenizer

    monkeypatch.setattr(module, "SAMPLE", sample)
    monkeypatch.setattr(module, "_AT_ONCE", 7)
    corpus = load_corpus(folder)
    found = tokenize(corpus, 300)
    assert found.seen == min(sample, corpus.bytes - corpus.validation_bytes)
    tokenizer = Tokenizer.from_str(found.tokenizer)
    for ids, texts in ((found.train, corpus.train), (found.validation, corpus.validation)):
        whole = "".join(f"{text}<|endoftext|>" for text in texts)
        assert tokenizer.decode(ids.tolist(), skip_special_tokens=False) == whole
    again = tokenize(corpus, 300)
    assert torch.equal(again.train, found.train)
    assert again.tokenizer == found.tokenizer


def test_a_sample_is_another_tokenizer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokenize(load_corpus(folder), 300)
    monkeypatch.setattr(module, "SAMPLE", 700)
    part = tokenize(load_corpus(folder), 300)
    assert (whole.seen, part.seen) == (whole.corpus.bytes - whole.corpus.validation_bytes, 700)
    assert whole.tokenizer != part.tokenizer
    assert (whole.sampled, part.sampled) == ("", "the BPE was trained on the first 0.0 MB")
    monkeypatch.setattr(module, "SAMPLE", 16_000_000)
    assert tokenize(load_corpus(folder), 300).tokenizer == whole.tokenizer


def test_a_sample_ends_within_a_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 4)
    assert module._sample(("ab", "c\u00e9d", "never")) == ("ab", "c")
    assert module._sample(("abc",)) == ("abc",)

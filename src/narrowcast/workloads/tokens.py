"""From texts to batches: a byte-level BPE, cached token ids, and batches as pure functions of (seed, step).

Byte-pair encoding (Sennrich et al. 2016) over bytes, as GPT-2 has it: any text can be encoded, and every token is a
string of bytes. Training one and encoding eight megabytes takes seconds, so both are cached, under the digest of the
corpus: a cache that cannot be read or written is never an error, the work is only done again. Of a large corpus the
BPE sees the first `SAMPLE` bytes, which are a fair sample of a folder: its files stand in the order of a hash.
"""

import contextlib
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.names import cache_folder
from narrowcast.workloads.corpus import SEPARATOR, Corpus

SAMPLE = 16_000_000  # bytes that a BPE is trained on: it counts words, and the rare ones cost the time and the memory
_AT_ONCE = 512  # texts that are encoded together: a token is hundreds of bytes until its id is taken
_END_TOKENS = (SEPARATOR, "</s>", "<|end_of_text|>", "<eos>")  # GPT and this file, Llama 2, Llama 3, Gemma


@dataclass(frozen=True)
class TokenizedCorpus:
    """A corpus as token ids.

    Attributes:
        corpus: the texts.
        train, validation: int64 ids, documents joined by the end-of-text token.
        vocab: vocabulary size.
        tokenizer: the serialized tokenizer (``tokenizer.json``).
        seen: bytes of training text that the BPE was trained on, None for a tokenizer that was given.
    """

    corpus: Corpus
    train: Tensor
    validation: Tensor
    vocab: int
    tokenizer: str
    seen: int | None = None

    def batch(self, seed: int, step: int, micro: int, batch: int, context: int) -> Tensor:
        """Return training tokens int64 ``[batch, context + 1]``, a pure function of its arguments."""
        rng = np.random.Generator(np.random.Philox(derived_seed(seed, step, micro)))
        starts = rng.integers(0, self.train.numel() - context, size=batch)
        return torch.stack([self.train[s : s + context + 1] for s in starts.tolist()])

    def validation_batches(self, count: int, batch: int, context: int) -> list[Tensor]:
        """Return up to ``count`` fixed batches ``[<= batch, context + 1]``, spread evenly over the validation text."""
        windows = (self.validation.numel() - 1) // context
        wanted = min(count * batch, windows)
        starts = [i * windows // wanted * context for i in range(wanted)]
        rows = [self.validation[s : s + context + 1] for s in starts]
        return [torch.stack(rows[i : i + batch]) for i in range(0, wanted, batch)]

    @property
    def sampled(self) -> str:
        """Say that the BPE saw a part of the corpus only, or nothing."""
        whole = self.corpus.bytes - self.corpus.validation_bytes
        return (
            ""
            if self.seen is None or self.seen == whole
            else f"the BPE was trained on the first {self.seen / 1e6:.1f} MB"
        )

    @property
    def bytes_per_token(self) -> float:
        """Bytes of validation text per validation token, to turn a loss per token into bits per byte."""
        return self.corpus.validation_bytes / max(1, self.validation.numel())

    def check(self, context: int) -> None:
        """Raise InputError where the corpus is too small for one window of ``context`` tokens on either side."""
        for side, ids in (("training", self.train), ("validation", self.validation)):
            if ids.numel() <= context:
                raise InputError(
                    f"--data {self.corpus.name}: {ids.numel()} {side} tokens, expected more than {context}; "
                    "give more text or a smaller --context"
                )


def derived_seed(*parts: int | str) -> int:
    """Return a 64-bit seed that is a pure function of ``parts``, such as (seed, step)."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big")


def tokenize(corpus: Corpus, vocab: int, tokenizer_file: Path | None = None) -> TokenizedCorpus:
    """Return ``corpus`` as ids, under a BPE trained on it (cached) or the one in ``tokenizer_file``."""
    if tokenizer_file is not None:
        tokenizer = load_tokenizer(tokenizer_file)
        serialized, seen = tokenizer.to_str(), None
    else:
        from tokenizers import Tokenizer

        texts = _sample(corpus.train)
        seen = sum(len(text.encode()) for text in texts)
        serialized = _cached_tokenizer(corpus, texts, vocab)
        tokenizer = Tokenizer.from_str(serialized)
    ids = _cached_ids(corpus, tokenizer, serialized)
    train, validation = (torch.from_numpy(ids[side].astype(np.int64)) for side in ("train", "validation"))
    return TokenizedCorpus(corpus, train, validation, tokenizer.get_vocab_size(), serialized, seen)


def load_tokenizer(path: Path) -> Any:
    """Return the tokenizer in ``path`` (a tokenizer.json), without padding or truncation."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises bare Exception
        raise InputError(f"{path}: not a tokenizer.json ({error})") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode(texts: tuple[str, ...], tokenizer_file: Path) -> list[list[int]]:
    """Return the token ids of each text, without special tokens."""
    encodings = load_tokenizer(tokenizer_file).encode_batch(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def windows(documents: list[list[int]], window: int, batch: int, limit: int = 0, start: int = 0) -> list[Tensor]:
    """Cut ``documents`` (ids) into windows that each begin with the token ``start``, so that every id counts once.

    Returns int64 ``[<= batch, <= window + 1]``; the windows of one batch are equally long. At most ``limit`` windows, 0
    for all.
    """
    by_length: dict[int, list[list[int]]] = {}
    taken = 0
    for ids in documents:
        for first in range(0, len(ids), window):
            if limit and taken == limit:
                break
            piece = ids[first : first + window]
            by_length.setdefault(len(piece), []).append([start, *piece])
            taken += 1
    return [torch.tensor(rows[i : i + batch]) for rows in by_length.values() for i in range(0, len(rows), batch)]


def _sample(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first `SAMPLE` bytes of ``texts``, the last one cut."""
    taken: list[str] = []
    left = SAMPLE
    for text in texts:
        size = len(text.encode())
        if size >= left:
            return (*taken, text.encode()[:left].decode(errors="ignore"))
        taken.append(text)
        left -= size
    return texts


def _cached_tokenizer(corpus: Corpus, texts: tuple[str, ...], vocab: int) -> str:
    """Return the serialized BPE of ``vocab`` entries trained on ``texts``, all or the first of the corpus'."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    part = "" if texts is corpus.train else f"-first{SAMPLE}"
    path = cache_folder() / f"bpe-{corpus.digest[:16]}-{vocab}{part}.json"
    with contextlib.suppress(Exception):  # absent, or damaged: the Rust library raises bare Exception
        return str(Tokenizer.from_file(str(path)).to_str())

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    serialized: str = tokenizer.to_str()
    _write(path, serialized.encode())
    return serialized


def _cached_ids(corpus: Corpus, tokenizer: Any, serialized: str) -> dict[str, Any]:
    key = hashlib.sha256((corpus.digest + serialized).encode()).hexdigest()[:16]
    path = cache_folder() / f"ids-{key}.safetensors"
    with contextlib.suppress(OSError, SafetensorError):
        return dict(load_file(path))
    end = next((i for t in _END_TOKENS if (i := tokenizer.token_to_id(t)) is not None), None)
    sides = {"train": corpus.train, "validation": corpus.validation}
    ids = {side: _encode(texts, tokenizer, end) for side, texts in sides.items()}
    _write(path, save(ids))
    return ids


def _encode(texts: tuple[str, ...], tokenizer: Any, end: int | None) -> Any:
    after = [] if end is None else [end]
    pieces = [np.zeros(0, dtype=np.int32)]
    for first in range(0, len(texts), _AT_ONCE):
        together = list(texts[first : first + _AT_ONCE])
        for encoding in tokenizer.encode_batch_fast(together, add_special_tokens=False):
            pieces.append(np.asarray(encoding.ids + after, dtype=np.int32))
    return np.concatenate(pieces)


def _write(path: Path, content: bytes) -> None:
    """Write a cache file atomically, or leave it."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.replace(file.name, path)
            except OSError:
                os.unlink(file.name)
                raise

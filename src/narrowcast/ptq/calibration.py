"""What a model is shown before it is quantized: text, batches from Python, or text that it writes itself.

A few windows are set apart and never calibrated on: on them the model is judged before and after.
"""

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.models.generate import drawn, write
from narrowcast.workloads import derived_seed, encode, load_corpus

_LOGITS = 1 << 27  # bytes of float32 logits that one batch may make, as far as its size decides
_ENOUGH = 4  # windows that are cut for each that is drawn: documents differ


@dataclass(frozen=True)
class CalibrationConfig:
    """How much is shown.

    Attributes:
        data: text file or folder; None lets the model write its own text.
        samples: windows to calibrate on.
        length: tokens of a window, at most the model's reach.
        held: windows set apart to judge on.
        seed: decides which windows, and what the model writes.
    """

    data: Path | None = None
    samples: int = 64
    length: int = 512
    held: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("samples", self.samples, 1), ("length", self.length, 2), ("held", self.held, 0)):
            if value < least:
                raise InputError(f"--{name}: expected at least {least}, found {value}")


@dataclass(frozen=True)
class Calibration:
    """Batches of token ids (int64 ``[batch, length]``), or of a model's keyword arguments.

    Attributes:
        batches: to calibrate on.
        held: to judge on.
        source: where they came from, for the report.
    """

    batches: tuple[Any, ...]
    held: tuple[Tensor, ...] = ()
    source: str = "batches given from Python"

    @property
    def tokens(self) -> int:
        """Tokens in the batches; 0 where they are not token ids."""
        return sum(b.numel() for b in self.batches if isinstance(b, Tensor))

    @property
    def digest(self) -> str:
        """A digest of all tensors, which names the data in the settings of a run."""
        digest = hashlib.sha256()
        for batch in (*self.batches, *self.held):
            parts = batch.values() if isinstance(batch, dict) else [batch]
            for part in parts:
                if isinstance(part, Tensor):
                    digest.update(str((part.dtype, tuple(part.shape))).encode())
                    digest.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def from_batches(batches: Iterable[Any], held: Iterable[Tensor] = ()) -> Calibration:
    """Return batches given from Python: token ids or dictionaries; the iterables are drawn up here."""
    found, apart = tuple(batches), tuple(held)
    for batch in (*found, *apart):
        if not isinstance(batch, Tensor | dict):
            raise InputError(
                f"calibration: found a {type(batch).__name__}, expected token ids or a dictionary of tensors"
            )
    return Calibration(found, apart)


def from_text(config: CalibrationConfig, tokenizer: Path, model: nn.Module) -> Calibration:
    """Return windows of the text in ``config.data``; those set apart come from other documents where there are several.

    Raises InputError where the text is missing, empty or too short for one window.
    """
    corpus = load_corpus(config.data)
    length, start = reach(model, config.length), begin_token(model)
    found = []
    for side, texts, wanted in (("train", corpus.train, config.samples), ("held", corpus.validation, config.held)):
        key = derived_seed(config.seed, "calibration", side)
        found.append(_drawn(texts, tokenizer, wanted, length, start, key))
    if not found[0]:
        raise InputError(f"--data {corpus.name}: no window of two tokens or more; give more text")
    return Calibration(
        _batches(found[0], model, length), _batches(found[1], model, length), f"{corpus.name}, {corpus.split}"
    )


def _drawn(
    texts: tuple[str, ...], tokenizer: Path, wanted: int, length: int, start: list[int], key: int
) -> list[list[int]]:
    """Return up to ``wanted`` windows, whole ones first, drawn from documents in an order that ``key`` decides."""
    draw = random.Random(key)
    room = length - len(start)
    whole: list[list[int]] = []
    short: list[list[int]] = []
    for place in draw.sample(range(len(texts)), len(texts)):
        ids = encode((texts[place],), tokenizer)[0]
        cut = [start + ids[first : first + room] for first in range(0, len(ids), room)]
        whole += [w for w in cut if len(w) == length]
        short += [w for w in cut if 2 <= len(w) < length]
        if len(whole) >= _ENOUGH * wanted:
            break
    picked = draw.sample(whole, min(wanted, len(whole)))
    return picked + draw.sample(short, min(wanted - len(picked), len(short)))


def from_model(
    config: CalibrationConfig, model: nn.Module, on_rows: Callable[[int, int], object] = lambda *done: None
) -> Calibration:
    """Return text that ``model`` (filled, a causal language model) writes itself, each token drawn from its prediction.

    A window begins with the begin token, or with a random token where the model has none. ``on_rows`` is told of the
    windows that are written, and how many there will be.
    Source: Liu et al. 2023, LLM-QAT (section 3.1): data that the model generates serve as well as its training data.
    """
    length, total = reach(model, config.length), config.samples + config.held
    draws = torch.Generator().manual_seed(derived_seed(config.seed, "calibration", "self") % 2**63)
    rows: list[list[int]] = []
    size, begin = batch_size(model, length), begin_token(model)
    while len(rows) < total:
        on_rows(len(rows), total)
        count = min(size, total - len(rows))
        random_token = torch.randint(_vocabulary(model), (count, 1), generator=draws)
        first = torch.full((count, 1), begin[0]) if begin else random_token
        rows += write(model, first, length, drawn(draws)).tolist()
    batches = _batches(rows[: config.samples], model, length)
    return Calibration(batches, _batches(rows[config.samples :], model, length), "text that the model wrote itself")


def _batches(rows: list[list[int]], model: nn.Module, length: int) -> tuple[Tensor, ...]:
    """Return windows as tensors, those of one length together."""
    size = batch_size(model, length)
    by_length: dict[int, list[list[int]]] = {}
    for row in rows:
        by_length.setdefault(len(row), []).append(row)
    return tuple(torch.tensor(same[i : i + size]) for same in by_length.values() for i in range(0, len(same), size))


def batch_size(model: nn.Module, length: int) -> int:
    """Return how many windows of ``length`` go through the model at once: at most 8, fewer for large vocabularies."""
    return max(1, min(8, _LOGITS // (4 * length * _vocabulary(model))))


def reach(model: nn.Module, length: int) -> int:
    """Return ``length``, or the longest text that the model takes where that is less."""
    config: Any = model.config
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or length
    return min(length, int(longest))


def begin_token(model: nn.Module) -> list[int]:
    """Return the token that begins a text, as a list of one, or an empty list where the model has none."""
    token = getattr(model.config, "bos_token_id", None)
    return [] if token is None else [int(token)]


def _vocabulary(model: nn.Module) -> int:
    return int(getattr(model.config, "vocab_size", 1))

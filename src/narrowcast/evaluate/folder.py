"""Perplexity of a run folder or a Hugging Face model folder."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.io import read_settings
from narrowcast.io.runs import SETTINGS
from narrowcast.metrics import bits_per_byte, mean_loss, perplexity
from narrowcast.ptq.pretrained import open_model
from narrowcast.recipes import recipe
from narrowcast.workloads import encode, load_corpus, windows


def evaluate_folder(
    path: Path,
    *,
    data: Path | None = None,
    recipe_name: str | None = None,
    window: int = 0,
    batch: int = 8,
    limit: int = 0,
) -> dict[str, Any]:
    """Return loss (nats per token), perplexity, bits per byte and what they were measured on.

    Each document is cut into windows of ``window`` tokens, and each window is predicted from the beginning-of-text
    token and its own past, so that every token of the text counts once.

    Raises InputError for a folder that is neither a run nor a model, and for what `open_model` refuses.
    """
    _check(window, batch, limit)
    run = (path / SETTINGS).is_file()
    settings = read_settings(path) if run else {}
    folder = path / "model" if run else path
    if run and not folder.is_dir():
        raise InputError(f"{path}: the run has no finished model yet; finish it with 'narrowcast train --resume'")
    chosen = recipe(recipe_name or settings.get("recipe", "fp32"))
    model, tokenizer = open_model(folder)
    if tokenizer is None:
        raise InputError(f"{folder}: has no tokenizer.json; a text cannot be evaluated without one")
    own = settings.get("data")
    corpus = load_corpus(data or (Path(own) if own else None))
    texts = corpus.validation if data is None else (*corpus.train, *corpus.validation)
    documents = encode(texts, tokenizer)
    if chosen.linear is not None:
        chosen.convert(model)
    window = _window(model, window or settings.get("context", 0))
    batches = _batches(model, documents, window, batch, limit)
    loss = mean_loss(model, batches)
    count = sum(b.shape[0] * (b.shape[1] - 1) for b in batches)
    size, total = sum(len(text.encode()) for text in texts), sum(len(d) for d in documents)
    return {
        "recipe": chosen.name,
        "text": corpus.name + ("" if data else " (validation files)"),
        "tokens": count,
        "bytes": round(size * count / total),
        "window": window,
        "loss": loss,
        "perplexity": perplexity(loss),
        "bits_per_byte": bits_per_byte(loss, total, size),
    }


def text_batches(
    model: nn.Module, tokenizer: Path, data: Path | None, window: int, batch: int, limit: int
) -> tuple[list[Tensor], str]:
    """Return (windows of a text as `evaluate_folder` cuts them, the text's name).

    ``data`` names the text; without it, the validation files of the standard library's source.
    """
    _check(window, batch, limit)
    corpus = load_corpus(data)
    texts = corpus.validation if data is None else (*corpus.train, *corpus.validation)
    return _batches(model, encode(texts, tokenizer), _window(model, window), batch, limit), corpus.name


def _check(window: int, batch: int, limit: int) -> None:
    for name, value, least in (("window", window, 0), ("batch", batch, 1), ("limit", limit, 0)):
        if value < least:
            raise InputError(f"--{name}: expected at least {least}, found {value}")


def _window(model: nn.Module, wanted: int) -> int:
    longest = int(getattr(model.config, "max_position_embeddings", 2048))
    return min(wanted or longest, longest)


def _batches(model: nn.Module, documents: list[list[int]], window: int, batch: int, limit: int) -> list[Tensor]:
    start = getattr(model.config, "bos_token_id", None)
    return windows(documents, window, batch, limit, 0 if start is None else int(start))

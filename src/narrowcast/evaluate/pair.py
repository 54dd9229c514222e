"""``narrowcast evaluate A B``: two model folders of one kind, on one text, set of pictures or file of pairs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from narrowcast.errors import InputError
from narrowcast.evaluate.classifier import compare_classifiers, logits_of
from narrowcast.evaluate.findings import Comparison
from narrowcast.evaluate.folder import text_batches
from narrowcast.evaluate.language import compare_language
from narrowcast.evaluate.layers import layer_damage
from narrowcast.evaluate.sentences import compare_encoders
from narrowcast.models.encoder import SentenceEncoder
from narrowcast.ptq.pretrained import open_model
from narrowcast.workloads.images import labelled
from narrowcast.workloads.sentences import sentence_pairs

#: called with what is being done
Note = Callable[[str], None]
_LAYER_BATCHES = 2  # batches that the layers are judged on: one pass per layer

#: ending of an architecture's name -> (kind, class of transformers that loads it)
_KINDS = (
    ("ForImageClassification", "classifier", "AutoModelForImageClassification"),
    ("ForCausalLM", "language", "AutoModelForCausalLM"),
    ("LMHeadModel", "language", "AutoModelForCausalLM"),
    ("Model", "sentences", "AutoModel"),
)
_WORDS = {"classifier": "an image classifier", "language": "a language model", "sentences": "a sentence encoder"}


def compare_folders(
    a: Path,
    b: Path,
    *,
    data: Path | None = None,
    window: int = 0,
    batch: int = 8,
    limit: int = 0,
    layers: bool = True,
    draws: int = 1000,
    seed: int = 0,
    note: Note = lambda what: None,
) -> Comparison:
    """Return what model folder ``b`` lost against ``a``; both of one kind, which config.json tells.

    Args:
        a, b: Hugging Face model folders; B may hold weights of any precision.
        data: text file or folder for language models; an ``.npz`` of pictures and labels for classifiers; a file of
            scored pairs for sentence encoders.
        window, batch, limit: of the text, as for `evaluate_folder`; ``limit`` also cuts pictures and pairs.
        layers: whether to replace each layer alone as well (language models and classifiers).
        draws, seed: of the bootstrap.
        note: progress.
    """
    kind, auto = kind_of(a)
    other, _ = kind_of(b)
    if kind != other:
        raise InputError(f"{a} is {_WORDS[kind]} and {b} is {_WORDS[other]}; expected two of one kind")
    note(f"loading {a}")
    (one, tokenizer), (two, _) = open_model(a, auto), open_model(b, auto)
    note("comparing")
    if kind == "classifier":
        found, logits = _pictures(one, two, _needed(data, "an .npz of pictures and labels"), limit, draws, seed)
    elif tokenizer is None:
        raise InputError(f"{a}: has no tokenizer.json; a text cannot be evaluated without one")
    elif kind == "sentences":
        path = _needed(data, "a file of score<tab>sentence<tab>sentence")
        pairs = sentence_pairs(path)
        pairs = pairs.head(limit) if limit else pairs
        return compare_encoders(SentenceEncoder(one.eval(), tokenizer), two.eval(), pairs, path.name, draws, seed)
    else:
        batches, corpus = text_batches(one, tokenizer, data, window, batch, limit)
        found = compare_language(one, two, batches, corpus, draws, seed, note)
        few = batches[:_LAYER_BATCHES]

        def logits(model: nn.Module) -> list[Tensor]:
            return [model(input_ids=tokens[:, :-1], use_cache=False).logits for tokens in few]

    if layers:
        note("layer by layer")
        damage, what = layer_damage(one.eval(), two.eval(), logits)
        found.layers.extend(row.to_json() for row in damage)
        if what != "layers":
            found.notes.append(f"layers were replaced as {what}")
    return found


def _pictures(
    a: nn.Module, b: nn.Module, path: Path, limit: int, draws: int, seed: int
) -> tuple[Comparison, Callable[[nn.Module], list[Tensor]]]:
    images = labelled(path)
    images = images.head(limit) if limit else images
    batches = images.batches(64)
    few = batches[:_LAYER_BATCHES]
    found = compare_classifiers(a, b, batches, path.name, draws=draws, seed=seed)
    return found, lambda model: [logits_of(model, x) for x, _ in few]


def _needed(data: Path | None, what: str) -> Path:
    if data is None:
        raise InputError(f"--data: expected {what} for models of this kind")
    if not data.is_file():
        raise InputError(f"--data {data}: no such file; expected {what}")
    return data


def kind_of(folder: Path) -> tuple[str, str]:
    """Return (kind of the model in ``folder``, class of `transformers` that loads it), from its config.json."""
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(f"model {folder}: has no config.json; expected a Hugging Face model folder")
    try:
        settings: Any = json.loads(config.read_text())
        names = settings.get("architectures") or ["ForCausalLM"]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{config}: not a JSON config ({error})") from None
    for ending, kind, auto in _KINDS:
        if str(names[0]).endswith(ending):
            return kind, auto
    known = ", ".join(ending for ending, _, _ in _KINDS)
    raise InputError(f"{config}: architecture {names[0]} is of no kind that can be compared; expected one of {known}")

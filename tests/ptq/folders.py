"""Model folders for the tests of quantizing: every architecture as `save_pretrained` writes it."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.ptq.architectures import Architecture, built

from narrowcast.models import quiet
from narrowcast.ptq import recipe
from narrowcast.ptq.recipe import PtqRecipe


def saved(architecture: Architecture, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    """The architecture with its random weights as a folder."""
    model = built(architecture)
    model.config = copy.deepcopy(model.config)  # saving writes the dtype into it, and the table's is everyone's
    with quiet():
        model.to(dtype).save_pretrained(folder, **options)
    return folder


def quick(name: str) -> PtqRecipe:
    """The recipe with a coarser scale search: the same path, sooner."""
    chosen = recipe(name)
    return replace(chosen, search=replace(chosen.search, steps=5)) if hasattr(chosen.search, "steps") else chosen


def edited(folder: Path, change: Any) -> None:
    """Rewrite the folder's tensors after ``change(tensors)``."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})


def configured(folder: Path, **changes: Any) -> None:
    """Rewrite the folder's config.json."""
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))


def bytes_of(folder: Path) -> dict[str, bytes]:
    """The folder's weights and config, byte by byte."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith("report")}


def logits(model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits

"""Names that every floor needs: of dtypes, and of the folder for derived data."""

import os
from pathlib import Path

import torch


def dtype_name(dtype: torch.dtype) -> str:
    """Return ``bfloat16`` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


def cache_folder() -> Path:
    """Return the folder for derived data: ``$XDG_CACHE_HOME/narrowcast`` or ``~/.cache/narrowcast``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "narrowcast"

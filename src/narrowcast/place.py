"""Where a run computes: its device, the dtype of what its recipe leaves wide, and what makes it repeatable there.

A run killed on a GPU resumes to the same losses bit for bit on the same kind of GPU and the same versions: kernels
whose sums depend on the order of threads are refused (`torch.use_deterministic_algorithms`).
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from narrowcast.errors import InputError, nearest

DEVICES = ("auto", "cpu", "cuda")
WIDE = ("auto", "float32", "bfloat16")
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS repeats itself only with a workspace of its own per stream


@dataclass(frozen=True)
class Place:
    """A device and the dtype of everything that the recipe leaves wide.

    Attributes:
        device: ``cpu`` or ``cuda``.
        wide: ``torch.float32``, or ``torch.bfloat16`` by autocast; parameters stay float32 either way.
    """

    device: torch.device
    wide: torch.dtype

    @classmethod
    def of(cls, device: str, wide: str) -> "Place":
        """Return the place that two options name; ``auto`` is CUDA and bfloat16 where there is a GPU.

        Raises InputError for unknown names, and for ``cuda`` where there is none.
        """
        for option, name, known in (("--device", device, DEVICES), ("--wide", wide, WIDE)):
            if name not in known:
                raise InputError(f"{option}: unknown {name!r}{nearest(name, known)}")
        there = torch.cuda.is_available()
        if device == "cuda" and not there:
            raise InputError("--device cuda: this torch sees no CUDA device; use --device cpu")
        kind = "cuda" if there and device != "cpu" else "cpu"
        if wide == "auto":
            wide = "bfloat16" if kind == "cuda" else "float32"
        return cls(torch.device(kind), getattr(torch, wide))

    def to_json(self) -> dict[str, str]:
        """Return what a run's settings keep: the names that ``auto`` stood for."""
        return {"device": self.device.type, "wide": str(self.wide).removeprefix("torch.")}

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context of a forward pass."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.wide == torch.bfloat16)

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """Draw from ``seed`` inside, and leave the generators as they were."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield

    @contextmanager
    def repeatable(self) -> Iterator[None]:
        """Refuse kernels that do not repeat themselves; on a CPU there is nothing to do."""
        if self.device.type == "cpu":
            yield
            return
        os.environ.setdefault(_WORKSPACE, ":4096:8")
        before = torch.are_deterministic_algorithms_enabled()
        memory: Any = torch.utils.deterministic
        filled = memory.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # else every new tensor is written once more
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)
            memory.fill_uninitialized_memory = filled

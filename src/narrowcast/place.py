"""Where a run computes: its device, the dtype of what its recipe leaves wide, its attention, what makes it repeatable.

A run killed on a GPU resumes to the same losses bit for bit on the same kind of GPU and the same versions: kernels
whose sums depend on the order of threads are refused (`torch.use_deterministic_algorithms`).
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.attend import Attention, Setting, attend, choose_attention
from narrowcast.errors import InputError, nearest
from narrowcast.models.language import causal_by, head_size, not_plain
from narrowcast.names import dtype_name

DEVICES = ("auto", "cpu", "cuda")
WIDE = ("auto", "float32", "bfloat16")
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS repeats itself only with a workspace of its own per stream


@dataclass(frozen=True)
class Place:
    """A device and the dtype of everything that the recipe leaves wide.

    Attributes:
        device: ``cpu`` or ``cuda``.
        wide: ``torch.float32``, or ``torch.bfloat16`` by autocast; parameters stay float32 either way.
        asked: the attention that is asked for, one of `attend.ASKED`.
    """

    device: torch.device
    wide: torch.dtype
    asked: str = "auto"

    @classmethod
    def of(cls, device: str, wide: str, attention: str = "auto") -> "Place":
        """Return the place that three options name; ``auto`` is CUDA and bfloat16 where there is a GPU.

        Raises InputError for unknown names, for ``cuda`` where there is none, and for a kernel that no model could use.
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
        place = cls(torch.device(kind), getattr(torch, wide), attention)
        place._choose(8)  # a head that every kernel takes
        return place

    def _choose(self, size: int) -> Attention:
        repeatable = self.device.type == "cuda"  # as `repeatable` asks
        return choose_attention(self.asked, Setting.on(self.device, self.wide, size, repeatable), "--attention")

    def attention(self, model: nn.Module) -> Attention:
        """Return what runs the attention of ``model`` in training, and why; nothing is set yet.

        Raises InputError where a kernel is asked for that cannot run it.
        """
        reason, size = not_plain(model), head_size(model)
        if reason is None and size is not None:
            return self._choose(size)
        reason = reason or "its config names no head size"
        if self.asked not in ("auto", "torch"):
            what = f"--attention {self.asked}: the attention of {type(model).__name__} cannot be set"
            raise InputError(f"{what}: {reason}; take 'auto' or 'torch'")
        return Attention("torch", reason)

    @contextmanager
    def attending(self, model: nn.Module, how: Attention) -> Iterator[None]:
        """Let ``how`` run attention inside: of whole windows in this place's dtype. All else runs as before."""

        def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> Tensor | None:
            kind = q.device.type
            made = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else v.dtype
            return attend(q, k, v, scale=scale, kind=how.kind) if made == self.wide else None

        if how.kind == "torch":
            yield
            return
        with causal_by(model, attention):
            yield

    def to_json(self) -> dict[str, str]:
        """Return what a run's settings keep: the names that ``auto`` stood for."""
        return {"device": self.device.type, "wide": dtype_name(self.wide)}

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

"""Out of memory: which category of tensors took it, and what to lower.

Weights, gradients and optimizer state are counted, or, before the first update has made them, foretold; what is saved
for the backward pass is measured on one sequence and multiplied (`activation_bytes`, so that a compiled model may keep
less); the workspace is what the run held at its peak beyond all that: temporaries, casts, logits.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from narrowcast.analysis.footprint import activation_bytes
from narrowcast.optim import state_bytes

_ASKED = re.compile(r"ried to allocate ([\d.]+ \w+)")
_ROOM = 0.8  # of what weights, gradients and state leave: the share planned for saved activations
_MOMENTS = 8  # bytes of torch's AdamW for each parameter: its weight is the model's own


@dataclass(frozen=True)
class Shares:
    """Bytes by category, of one training step on one device. ``batch`` sequences a step."""

    weights: int
    gradients: int
    state: int
    saved: int
    workspace: int
    total: int
    batch: int

    @property
    def named(self) -> dict[str, int]:
        """The categories by the names that messages use."""
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer state": self.state,
            "saved activations": self.saved,
            "workspace": self.workspace,
        }

    @property
    def fitting(self) -> int:
        """The largest power of two of sequences whose saved activations and workspace fit, 0 where none does."""
        room = _ROOM * self.total - self.weights - self.gradients - self.state
        each = max(1, self.saved + self.workspace) / self.batch
        fits = min(int(max(room, 0) / each), self.batch - 1)
        return 1 << (fits.bit_length() - 1) if fits else 0


def out_of_memory(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    states: str | None,
    tokens: Tensor,
    wide: torch.dtype,
    said: str,
) -> str:
    """Return one line: what was asked for, what each category takes, and what to lower.

    Args:
        model, optimizer: as they were; gradients are dropped, and the step's graph must be gone by now.
        states: how the optimizer keeps its state, as `Recipe.optimizer`.
        tokens: the batch of the step, ``[batch, context + 1]``.
        wide: dtype of what the recipe leaves wide.
        said: torch's message.
    """
    optimizer.zero_grad(set_to_none=True)
    found = shares(model, optimizer, states, tokens, torch.finfo(wide).bits)
    return explained(found, said, next(model.parameters()).device)


def shares(model: nn.Module, optimizer: torch.optim.Optimizer, states: str | None, tokens: Tensor, wide: int) -> Shares:
    """Return where the memory of a step went; arguments as for `out_of_memory`, ``wide`` in bits."""
    parameters = list(model.parameters())
    device = parameters[0].device
    peak, total = _device(device)
    weights = _bytes((*parameters, *model.buffers()))
    gradients = _bytes(p for p in parameters if p.requires_grad)
    held = _bytes(t for kept in optimizer.state.values() for t in kept.values() if isinstance(t, Tensor))
    count = sum(p.numel() for p in parameters)
    state = held or round(_MOMENTS * count if states is None else state_bytes(model, states))
    try:
        saved = activation_bytes(model, tokens[:1].to(device), wide) * len(tokens)
    except torch.OutOfMemoryError:
        saved = 0  # not even one sequence: it all counts as workspace
    workspace = max(0, peak - weights - gradients - held - saved)
    return Shares(weights, gradients, state, saved, workspace, total, len(tokens))


def _device(device: torch.device) -> tuple[int, int]:
    """Return the bytes that tensors took on ``device`` at most (unknown, 0, on a CPU), and those that it has."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.empty_cache()
        return peak, torch.cuda.mem_get_info(device)[1]
    return 0, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def explained(found: Shares, said: str, device: torch.device) -> str:
    """Return the line of `out_of_memory`."""
    asked = _ASKED.search(said)
    more = f", {asked[1]} more wanted" if asked else ""
    parts = {name: size for name, size in found.named.items() if size}
    most = max(parts, key=lambda name: parts[name])
    listed = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items())
    return (
        f"out of memory on {device} ({_gib(found.total)} GiB{more}): an update takes about, in GiB, {listed}; most of "
        f"it is {most}: {_remedy(most, found)}"
    )


def _remedy(most: str, found: Shares) -> str:
    if most in ("weights", "gradients"):
        return "train a smaller --model"
    if most == "optimizer state":
        return "keep it narrow (--recipe RECIPE+fp8-adam-blocks), or train a smaller --model"
    fits = found.fitting
    if not fits:
        return "lower --context, or train a smaller --model"
    same = f"with --accumulate {-(-found.batch // fits)} for as many tokens"
    return f"lower --batch from {found.batch} to about {fits} ({same}), or --context"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"

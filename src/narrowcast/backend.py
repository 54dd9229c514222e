"""The only door to fast kernels: which backend runs an operation, and why.

``emulate`` is plain PyTorch on any device: the definition. ``native`` is a library gemm or a kernel of ours: the speed.
``auto`` takes native where it can and says why where it cannot. Nothing falls back silently: `choose` returns the
reason, and with ``backend="native"`` it raises instead.
"""

from dataclasses import dataclass

import torch

from narrowcast.accumulate import FP32, TIMES
from narrowcast.errors import InputError, nearest
from narrowcast.ops import Gemm

BACKENDS = ("auto", "emulate", "native")


@dataclass(frozen=True)
class Choice:
    """What will run: the backend, the kernel's name, and the reason where it is not a native one."""

    backend: str
    kernel: str
    why: str


def capability(device: torch.device) -> str | None:
    """Return why ``device`` cannot run narrow tensor-core gemms, or None where it can."""
    if device.type != "cuda":
        return f"device {device.type} has no narrow tensor cores"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 9):
        return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor}) has no FP8 units; they start with sm_89"
    return None


def _kernel_for(gemm: Gemm) -> str | None:
    """Return the native kernel that computes ``gemm``; this version has none."""
    return None


def choose(backend: str, gemm: Gemm, device: torch.device, what: str) -> Choice:
    """Return what runs ``gemm`` on ``device``.

    Raises InputError for an unknown backend, and for ``native`` where only emulation is possible.
    """
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}{nearest(backend, BACKENDS)}")
    emulated = "float32 matmul of decoded operands"
    if gemm.accumulator != FP32 or gemm.product != TIMES:
        emulated = f"{gemm.product} of decoded operands, accumulated by {gemm.accumulator}"
    if backend == "emulate":
        return Choice("emulate", emulated, "asked for")
    reason = capability(device)
    kernel = _kernel_for(gemm) if reason is None else None
    if kernel is not None:
        return Choice("native", kernel, "")
    reason = reason or "this version has no native kernel for this gemm"
    if backend == "native":
        raise InputError(f"{what}: backend 'native' cannot run here: {reason}; use 'auto' or 'emulate'")
    return Choice("emulate", emulated, reason)

"""The only door to fast kernels: which backend runs an operation, and why.

``emulate`` is plain PyTorch on any device: the definition. ``native`` is a library gemm or a kernel of ours: the speed.
``auto`` takes native where it can and says why where it cannot. Nothing falls back silently: `choose` returns the
reason, and with ``backend="native"`` it raises instead.
"""

import os
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from narrowcast.accumulate import FP32, TIMES
from narrowcast.errors import InputError, nearest
from narrowcast.formats.lookup import constant
from narrowcast.ops import Gemm
from narrowcast.quantize import Cast, QTensor
from narrowcast.quantize import cast as cast_of
from narrowcast.quantize import quantize as quantize_by

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
    _check(backend)
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


def _check(backend: str) -> None:
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}{nearest(backend, BACKENDS)}")


def choose_quantize(backend: str, cast: Cast, x: Tensor, what: str = "tensor") -> Choice:
    """Return what makes the codes of ``x`` by ``cast``: the plain definition, or the Triton pass with the same bits.

    Raises InputError for an unknown backend, and for ``native`` where only emulation is possible.
    """
    _check(backend)
    emulated = "plain PyTorch, one operation after another"
    if backend == "emulate":
        return Choice("emulate", emulated, "asked for")
    spelling = cast.spelling
    reason = _no_kernels(x.device.type) or _no_quantize_kernel(spelling, x.dtype)
    if reason is None and not torch.compiler.is_compiling() and cast_of(spelling) != cast:
        reason = f"kernels know formats by their names, and {cast.format} is not what its name says"
    if reason is None:
        return Choice("native", "one Triton pass", "")
    if backend == "native":
        raise InputError(f"{what}: backend 'native' cannot run here: {reason}; use 'auto' or 'emulate'")
    return Choice("emulate", emulated, reason)


@constant
def _no_kernels(device: str) -> str | None:
    """Return why no Triton kernel runs on this kind of device, or None where it does."""
    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "device cpu: kernels need a CUDA device (or TRITON_INTERPRET=1, which interprets them slowly)"
    if device not in ("cpu", "cuda"):
        return f"device {device}: kernels need a CUDA device"
    if find_spec("triton") is None:
        return "Triton is not installed; pip install narrowcast[gpu]"
    return None


@constant
def _no_quantize_kernel(cast: str, dtype: torch.dtype) -> str | None:
    """Return why no kernel quantizes tensors of ``dtype`` by a cast, or None where one does."""
    from narrowcast.kernels.support import reason

    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"kernels read float32, bfloat16 and float16, not {dtype}"
    try:
        return reason(cast_of(cast))
    except InputError as error:
        return f"kernels know formats by their names: {error}"


def quantize(
    x: Tensor, spelling: str | Cast, axis: int = -1, seed: int | None = None, backend: str = "auto"
) -> QTensor:
    """Quantize ``x`` with tiles along ``axis``.

    Args:
        x: float tensor of any shape; refused if it is empty of axes or not floating point.
        spelling: a cast, its spelling or a preset.
        axis: the contraction axis.
        seed: for casts that draw random bits.
        backend: ``emulate``, the definition; ``native``, a kernel with the same bits, or InputError where there is
            none; ``auto``, the kernel where there is one (`choose_quantize` says which, and why not).
    """
    narrow = cast_of(spelling)
    if choose_quantize(backend, narrow, x).backend == "emulate":
        return quantize_by(x, narrow, axis, seed)
    from narrowcast.kernels.native import quantize as by

    return quantize_by(x, narrow, axis, seed, by)

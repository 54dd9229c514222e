"""The only door to fast kernels: which backend runs an operation, and why.

``emulate`` is plain PyTorch on any device: the definition. ``native`` is a library gemm or a kernel of ours: the speed.
``auto`` takes native where it can and says why where it cannot. Nothing falls back silently: `choose` returns the
reason, and with ``backend="native"`` it raises instead.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Unpack

import torch
from torch import Tensor

from narrowcast.accumulate import FP32, TIMES
from narrowcast.errors import CheckFailed, InputError, nearest
from narrowcast.formats import Stream
from narrowcast.formats.lookup import constant
from narrowcast.kernels.plan import BLOCKS, Plan, ours
from narrowcast.kernels.plan import plan as plan_of
from narrowcast.ops import Gemm, operand
from narrowcast.passes import How, Two
from narrowcast.quantize import Cast, QTensor
from narrowcast.quantize import cast as cast_of
from narrowcast.quantize import quantize as quantize_by
from narrowcast.storage import Storage

if TYPE_CHECKING:
    from narrowcast.kernels.rebased import Tally

BACKENDS = ("auto", "emulate", "native")
_PLAINLY = "plain PyTorch, one operation after another"
_READ = (torch.float32, torch.bfloat16, torch.float16)

#: the first compute capability with tensor cores for each kind of operand
_FIRST = {"fp8": (8, 9), "bfloat16": (8, 0), "float16": (7, 0)}


@dataclass(frozen=True)
class Choice:
    """What will run: the backend, the kernel's name, the reason where it is not a native one; a gemm's plan."""

    backend: str
    kernel: str
    why: str
    plan: Plan | None = None


def capability(device: torch.device, units: str = "fp8") -> str | None:
    """Return why ``device`` cannot run gemms on ``units`` (``fp8``, ``bfloat16``, ``float16``), or None where it can.

    With TRITON_INTERPRET=1 a CPU stands for a GPU: kernels are interpreted, products are float32's.
    """
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if device.type != "cuda":
        return f"device {device.type} has no narrow tensor cores"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < _FIRST[units]:
        first = "sm_{}{}".format(*_FIRST[units])
        units = "FP8" if units == "fp8" else units
        return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor}) has no {units} units; they start with {first}"
    return None


def _no_gemm(gemm: Gemm, plan: Plan | str, device: torch.device) -> str | None:
    """Return why ``gemm`` has no kernel on ``device``, or None where it has."""
    if device.type != "cuda" and (reason := capability(device)) is not None:
        return reason
    if isinstance(plan, str):
        return plan
    reason = capability(device, plan.units) or _no_kernels(device.type)
    if reason is None and device.type == "cuda" and {plan.tile_a, plan.tile_b} & {*BLOCKS}:
        major, minor = torch.cuda.get_device_capability(device)
        reason = None if major == 9 else f"sm_{major}{minor}: the library has block scales on Hopper (sm_90) only"
    for cast in gemm.casts:
        reason = reason or _no_quantize_kernel(cast.spelling, torch.float32)
    return reason


def choose(backend: str, gemm: Gemm, device: torch.device, what: str, against: str | None = None) -> Choice:
    """Return what runs ``gemm`` on ``device``.

    Args:
        backend: one of `BACKENDS`.
        gemm: with the casts that its operands consist of; `LinearSpec.resolved` looks through `Reuse`.
        device: where it is to run.
        what: name for error messages.
        against: a reason of the caller's against a kernel.

    Raises InputError for an unknown backend, and for ``native`` where only emulation is possible.
    """
    emulated = "float32 matmul of decoded operands"
    if gemm.accumulator != FP32 or gemm.product != TIMES:
        emulated = f"{gemm.product} of decoded operands, accumulated by {gemm.accumulator}"
    if _asks_for_emulation(backend):
        return Choice("emulate", emulated, "asked for")
    plan = against or plan_of(gemm)
    if isinstance(plan, Plan) and plan.first is not None and capability(device, plan.first.units) is not None:
        plan = replace(plan, first=None, least=0)
    reason = _no_gemm(gemm, plan, device)
    found = plan if isinstance(plan, Plan) else None  # a plan that is words is a reason
    if found and reason is None and device.type == "cuda" and _has_compiler():
        plan = found = ours(found, torch.cuda.get_device_capability(device))
    return _decide(backend, reason, Choice("native", str(plan), "", found), what, emulated)


def _asks_for_emulation(backend: str) -> bool:
    """Return whether nothing else is to be looked for; InputError for an unknown backend."""
    if backend not in BACKENDS:
        raise InputError(f"unknown backend {backend!r}{nearest(backend, BACKENDS)}")
    return backend == "emulate"


def _decide(backend: str, reason: str | None, native: Choice, what: str, emulated: str = _PLAINLY) -> Choice:
    """Return ``native`` where no reason stands against it, else emulation with the reason; InputError if forbidden."""
    if reason is None:
        return native
    if backend == "native":
        raise InputError(f"{what}: backend 'native' cannot run here: {reason}; use 'auto' or 'emulate'")
    return Choice("emulate", emulated, reason)


def _misnamed(*casts: Cast) -> str | None:
    """Return a reason where a cast is not what its spelling says; compiled code takes its word for it."""
    if torch.compiler.is_compiling():
        return None
    other = next((cast for cast in casts if cast_of(cast.spelling) != cast), None)
    return f"kernels know formats by their names, and {other.format} is not what its name says" if other else None


def choose_quantize(backend: str, cast: Cast, x: Tensor, what: str = "tensor") -> Choice:
    """Return what makes the codes of ``x`` by ``cast``: the plain definition, or the Triton pass with the same bits.

    Raises InputError for an unknown backend, and for ``native`` where only emulation is possible.
    """
    if _asks_for_emulation(backend):
        return Choice("emulate", _PLAINLY, "asked for")
    reason = _no_kernels(x.device.type) or _no_quantize_kernel(cast.spelling, x.dtype) or _misnamed(cast)
    return _decide(backend, reason, Choice("native", "one Triton pass", ""), what)


def choose_optimizer(
    backend: str,
    rule: str,
    storages: Mapping[str, Storage],
    p: Tensor,
    gradient: Tensor | None,
    what: str = "optimizer",
) -> Choice:
    """Return what makes an update of ``p`` by ``rule`` with states kept by ``storages``.

    Raises InputError for an unknown backend, and for ``native`` where only emulation is possible.
    """
    if _asks_for_emulation(backend):
        return Choice("emulate", _PLAINLY, "asked for")
    reason = _no_kernels(p.device.type)
    if reason is None:
        from narrowcast.kernels.kept_facts import reason as reason_of

        reason = reason_of(rule, storages, p, gradient)
    return _decide(backend, reason, Choice("native", "one Triton launch for all tensors", ""), what)


@constant
def _has_compiler() -> bool:
    """Return whether kernels in CUDA C++ can be compiled at first use."""
    from narrowcast.kernels.driver import nvrtc

    try:
        nvrtc()
    except CheckFailed:
        return False
    return True


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

    if dtype not in _READ:
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


def narrow(
    cast: Cast, x: Tensor, stream: Stream | None = None, history: Tensor | None = None, what: str = "tensor"
) -> QTensor:
    """Return codes and scales of ``x`` ``[..., K]`` by kernels, as `Cast.quantize` does; `choose` has said that it can.

    A tensor that has the format already is its own codes (`Cast.own`): nothing is copied.
    """
    from narrowcast.kernels.native import quantize as by

    own = cast.own(x)
    return by(cast, x, stream, history, what) if own is None else own


def narrow_both(
    x: Tensor,
    first: Cast,
    second: Cast | None,
    **how: Unpack[How],
) -> tuple[QTensor, QTensor] | None:
    """Return codes of ``x`` ``[..., K]`` as a matrix by ``first``, of its transpose by ``second`` (None: these turned).

    In one pass over ``x``; None where no kernel makes both of these at once. ``how``: as for `quantize_both`.
    """
    choice = choose_both("auto", first, second, x)
    random = first.random or (second is not None and second.random)
    if choice.backend == "emulate" or (random and (x.shape[-1] % 8 or x.numel() // x.shape[-1] % 8)):
        return None  # eight draws are made at once
    from narrowcast.kernels.passes import quantize_both as both  # by name: compiled code follows no import_module

    one, two = both(x, first, second, **how)
    return one, operand(two)


def gemm(a: QTensor, b: QTensor, plan: Plan, out: torch.dtype, alpha: float = 1.0) -> Tensor:
    """Return ``alpha a b^T`` ``[M, N]`` on tensor cores; see `kernels.gemm.gemm` and `kernels.rebased`."""
    if plan.first is not None:
        from narrowcast.kernels.rebased import gemm as by_data

        return by_data(a, b, plan, out, alpha)
    from narrowcast.kernels.gemm import gemm as by

    return by(a, b, plan, out, alpha)


def tally() -> "Tally":
    """Return how many products whose units depend on the data ran where, and why; see `kernels.rebased`."""
    from narrowcast.kernels.rebased import tally as counts

    return counts()


def transposed(q: QTensor) -> QTensor:
    """Return the codes of a matrix with rows and columns exchanged; see `kernels.gemm.transposed`."""
    from narrowcast.kernels.gemm import transposed as by

    return by(q)


def choose_both(backend: str, cast: Cast, across: Cast | None, x: Tensor, what: str = "tensor") -> Choice:
    """Return what makes both orientations of the codes of ``x``, alone or fused with what makes ``x``.

    Raises InputError for an unknown backend, and for ``native`` where only emulation is possible.
    """
    if _asks_for_emulation(backend):
        return Choice("emulate", _PLAINLY, "asked for")
    spelled = (cast.spelling, across.spelling if across is not None else "")
    casts = (cast,) if across is None else (cast, across)
    reason = _no_kernels(x.device.type) or _no_both_kernel(*spelled, x.dtype) or _misnamed(*casts)
    return _decide(backend, reason, Choice("native", "Triton passes over both orientations", ""), what)


@constant
def _no_both_kernel(cast: str, across: str, dtype: torch.dtype) -> str | None:
    """Return why no kernel makes both orientations by these casts, or None where one does."""
    from narrowcast.kernels.sides import reason

    if dtype not in _READ:
        return f"kernels read float32, bfloat16 and float16, not {dtype}"
    try:
        return reason(cast_of(cast), cast_of(across) if across else None)
    except InputError as error:
        return f"kernels know formats by their names: {error}"


def choose_gates(backend: str, gate: QTensor, g: Tensor, scale: Tensor | None, what: str = "gated unit") -> Choice:
    """Return what makes the gradients of a gated unit whose branches are kept as codes.

    Raises InputError for an unknown backend. Under ``native`` plain PyTorch runs where there is no kernel: it is the
    codes that had to be made natively.
    """
    if _asks_for_emulation(backend):
        return Choice("emulate", _PLAINLY, "asked for")
    reason = _no_kernels(g.device.type) or _no_gates_kernel(gate.cast.spelling, g.dtype) or _misnamed(gate.cast)
    if reason is None and (scale is not None or gate.padded != gate.shape or g.dtype != gate.dtype):
        reason = "kernels take branches without padding, of the gradient's dtype, not smoothed"
    return _decide("auto", reason, Choice("native", "one Triton pass", ""), what)


@constant
def _no_gates_kernel(cast: str, dtype: torch.dtype) -> str | None:
    """Return why no kernel makes those gradients from codes of a cast, or None where one does."""
    from narrowcast.kernels.support import no_gates

    return no_gates(cast_of(cast)) if dtype in _READ else f"kernels read float32, bfloat16 and float16, not {dtype}"


def gates(backend: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """Return `passes.saved_gradients`, or its kernel twin (`choose_gates`)."""
    if backend == "native":
        from narrowcast.kernels.gates import saved_gradients as by

        return by
    from narrowcast.passes import saved_gradients

    return saved_gradients


def passes(backend: str) -> ModuleType:
    """Return the module whose functions run (`Choice.backend`): `narrowcast.passes`, or its twin of kernels."""
    if backend == "native":
        from narrowcast.kernels import passes as kernels  # by name: compiled code follows no import_module

        return kernels
    from narrowcast import passes as plain

    return plain


def quantize_both(x: Tensor, cast: Cast, across: Cast | None = None, backend: str = "auto", **how: Unpack[How]) -> Two:
    """Quantize ``x`` with tiles along its last axis, and its transpose with tiles along the rows of ``x``.

    Args:
        x: float tensor ``[..., K]``, seen as a matrix ``[M, K]``.
        cast, across: of the matrix and of its transpose; across None for the same codes turned.
        backend: as for `quantize`; `choose_both` says what runs and why.
        how: ``stream``, ``across_stream``, ``history``, ``what``: see `passes.quantize_both`.
    """
    found: Two = passes(choose_both(backend, cast, across, x).backend).quantize_both(x, cast, across, **how)
    return found

"""What makes a tensor and both orientations of its codes at once, and gradients from kept codes: kernels against twins.

Norms, gates and GELU end in codes of x, their gradients in codes of g, by the casts of each recipe whose pairs of casts
the passes take; a delayed scale twice, its history first empty, then not. Bit for bit, but for the sign of a NaN, which
is the processor's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from narrowcast import backend
from narrowcast import passes as plain
from narrowcast.formats import Stream
from narrowcast.names import dtype_name
from narrowcast.nn.gated import Gated
from narrowcast.nn.norm import Norms
from narrowcast.nn.spec import PAIRS, LinearSpec
from narrowcast.ops import Reuse
from narrowcast.passes import How
from narrowcast.quantize import Cast, QTensor
from narrowcast.recipes import Recipe
from narrowcast.scaling import advance
from narrowcast.verify.finding import Finding, difference, different
from narrowcast.verify.inputs import INPUTS

#: matrices, and what training leaves wide: one that blocks divide, as they do in training, and one that nothing does
CASES = (((128, 256), torch.bfloat16), ((128, 256), torch.float32), ((37, 72), torch.bfloat16))
SMALL = (((24, 48), torch.bfloat16),)
EPS = 1e-5


@dataclass(frozen=True)
class Sources:
    """Three hard matrices of one shape and dtype: two inputs and a gradient; seed of the random bits."""

    x: Tensor
    y: Tensor
    g: Tensor
    seed: int


def check_all(finding: Finding, recipe: Recipe, device: torch.device, seed: int, small: bool) -> None:
    """Compare on all `INPUTS`; ``small``: one little matrix."""
    for shape, dtype in SMALL if small else CASES:
        for kind, harden in INPUTS.items():
            generator = torch.Generator(device).manual_seed(seed)
            x, y, g = (harden(torch.randn(shape, generator=generator, device=device)).to(dtype) for _ in range(3))
            check_fused(finding, recipe, Sources(x, y, g, seed), f"{kind} {dtype_name(dtype)} {list(shape)}")


def check_fused(finding: Finding, recipe: Recipe, sources: Sources, where: str) -> None:
    """Compare every pass by the casts of ``recipe``, and what its gated units and norms keep."""
    assert recipe.linear is not None
    for tensor, operations in _OPERATIONS.items():
        casts = pair(recipe.linear, tensor)
        if casts is None or backend.choose_both("auto", *casts, sources.x).backend == "emulate":
            continue
        for name in operations:
            _compare(finding, name, casts, sources, where)
    for cast, gated in kept(recipe):
        _codes_kept(finding, cast, gated, sources, where)


def pair(spec: LinearSpec, tensor: str) -> tuple[Cast, Cast | None] | None:
    """Return how ``x`` or ``g`` is cast, and its transpose (None: the same codes); None where passes cannot."""
    first, second = PAIRS[tensor]
    one, other = spec.operand(first), spec.operand(second)
    assert isinstance(one, Cast)
    gemms = [getattr(spec, label.split(".")[0]) for label in (first, second)]
    if any(gemm.transform is not None for gemm in gemms):
        return None
    if isinstance(other, Reuse):
        return (one, None) if other.then is None and one.tile.rows == one.tile.cols else None
    return one, other


def kept(recipe: Recipe) -> Iterator[tuple[Cast, bool]]:
    """Yield the casts of what gated units and norms keep, and whether a gated unit does."""
    for change in recipe.changes:
        if isinstance(change, Gated | Norms) and change.saved is not None:
            yield change.saved, isinstance(change, Gated) and not change.smooth


def _weight(s: Sources) -> Tensor:
    return s.y[0].nan_to_num(1.0, 2.0, -2.0).contiguous()


def _rms_norm_backward(run: Any, s: Sources, casts: Any, how: How) -> Any:
    return run.rms_norm_backward_both(s.g, s.x, _weight(s), plain.rms_norm(s.x, _weight(s), EPS)[1], s.y, *casts, **how)


def _smooth(run: Any, s: Sources, casts: Any, how: How) -> Any:
    scale = run.smooth_scale(s.y)
    return scale, run.swiglu_both(s.x, s.y, *casts, scale=scale, **how)


def _smooth_backward(run: Any, s: Sources, casts: Any, how: How) -> Any:
    return run.swiglu_backward_both(s.g, s.x, s.y, *casts, scale=plain.smooth_scale(s.y), **how)


#: by the tensor whose casts they end in: module of passes, sources, casts, further arguments -> tensors and codes
_OPERATIONS: dict[str, dict[str, Any]] = {
    "x": {
        "rms_norm": lambda run, s, casts, how: run.rms_norm_both(s.x, _weight(s), EPS, *casts, **how),
        "add_rms_norm": lambda run, s, casts, how: run.add_rms_norm_both(s.x, s.y, _weight(s), EPS, *casts, **how),
        "swiglu": lambda run, s, casts, how: run.swiglu_both(s.x, s.y, *casts, **how),
        "smooth_swiglu": _smooth,
        "gelu": lambda run, s, casts, how: run.gelu_both(s.x, *casts, **how),
    },
    "g": {
        "rms_norm_backward": _rms_norm_backward,
        "swiglu_backward": lambda run, s, casts, how: run.swiglu_backward_both(s.g, s.x, s.y, *casts, **how),
        "smooth_swiglu_backward": _smooth_backward,
        "gelu_backward": lambda run, s, casts, how: run.gelu_backward_both(s.g, s.x, *casts, **how),
    },
}


def _compare(finding: Finding, name: str, casts: tuple[Cast, Cast | None], sources: Sources, where: str) -> None:
    """Run one operation by both modules, twice where a scale comes from a history."""
    fast = backend.passes("native")
    parts = 2 if "swiglu_backward" in name else 1
    if fast.against(tuple(sources.x.shape), parts, *casts) is not None:
        return
    delayed, results = casts[0].scale.delayed, []
    for run in (fast, plain):
        history = None if delayed is None else delayed.new(sources.x.device)
        how: How = {"stream": Stream(sources.seed, 3, 2), "across_stream": Stream(sources.seed, 9, 2)}
        found = []
        for _ in "ab" if delayed else "a":
            how["history"] = history
            found.append(_OPERATIONS["x" if name in _OPERATIONS["x"] else "g"][name](run, sources, casts, how))
            if history is not None:
                found.append(history.clone())
                advance(history)
        results.append(list(_flat(found)))
    _count(finding, results[0], results[1], f"{name} by {casts[0]} of {where}")


def _codes_kept(finding: Finding, cast: Cast, gated: bool, s: Sources, where: str) -> None:
    """Compare codes of what is kept, and of gated units the gradients that come from them."""
    made = [[backend.quantize(t, cast, backend=name) for t in (s.x, s.y)] for name in ("auto", "emulate")]
    for found, want in zip(*made, strict=True):
        finding.code(found, want, f"kept {cast} of {where}")
    gate, up = made[1]
    if gated and backend.choose_gates("auto", gate, s.g, None).backend == "native":
        results = [backend.gates(name)(s.g, gate, up, None) for name in ("native", "emulate")]
        _count(finding, list(results[0]), list(results[1]), f"gradients of gates kept by {cast} of {where}")


def _count(finding: Finding, found: list[Any], want: list[Any], what: str) -> None:
    finding.fused += 1
    for a, b in zip(found, want, strict=True):
        wrong = difference(a, b, signed=False) if isinstance(b, QTensor) else different(a, b)
        if wrong:
            finding.fused_differing += 1
            finding.note(f"{what}: {wrong}")
            return


def _flat(found: Any) -> Iterator[Any]:
    if isinstance(found, Tensor | QTensor):
        yield found
    else:
        for part in found:
            yield from _flat(part)

"""Watching a model's matrix products: which weights share an input, what made that input, and its statistics.

The watch is one function mode: it sees every product whatever layer makes it, and knows a weight by where its data
lie. So fused experts, transposed layouts and custom modules need no hook of their own.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from narrowcast.ptq.targets import Target

#: called with (target, number of its matrix, rows [M, K] that meet the matrix)
OnProduct = Callable[[Target, int, Tensor], None]
_GROUPED = tuple(
    getattr(owner, name) for owner, name in ((F, "grouped_mm"), (torch, "_grouped_mm")) if hasattr(owner, name)
)
_MULTIPLIES = (torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.multiply)


class Watch(TorchFunctionMode):
    """Calls ``on_product`` for every product with a target's matrix while it is entered."""

    def __init__(self, targets: list[Target], on_product: OnProduct) -> None:
        super().__init__()
        self.on_product = on_product
        self.places = {m.data_ptr(): (t, i) for t in targets for i, m in enumerate(t.matrices())}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run ``func`` and look at what it multiplied."""
        out = func(*args, **(kwargs or {}))
        if func in _GROUPED:
            self._grouped(args[0], args[1], (kwargs or {}).get("offs"))
        found = self.product(func, args)
        if found is not None:
            self.on_product(*found)
        return out

    def _grouped(self, x: Tensor, weight: Tensor, ends: Tensor | None) -> None:
        """Show each expert the rows that were sorted to it: those up to its end, from the end of the one before."""
        place = self.places.get(weight.data_ptr())
        if place is None or ends is None:
            return
        start = 0
        for number, end in enumerate(ends.tolist()):
            self.on_product(place[0], number, x[start:end].detach())
            start = end

    def product(self, func: Any, args: Any) -> tuple[Target, int, Tensor] | None:
        """Return (target, matrix, rows) where ``func`` is a product with a target's matrix."""
        if func is F.linear:
            x, weight = args[0], args[1]
        elif func is torch.addmm:
            x, weight = args[1], args[2]
        elif func is F.conv2d:
            x, weight = args[0], args[1]
        else:
            return None
        place = self.places.get(weight.data_ptr())
        if place is None:
            return None
        rows = _patches(x, args) if func is F.conv2d else x.reshape(-1, x.shape[-1])
        return *place, rows.detach()


def _patches(x: Tensor, args: Any) -> Tensor:
    """Return the rows ``[M, in * kernel]`` that a convolution multiplies; those of all groups where it has several.

    Each output channel meets the rows of its own group alone: what is made of the rows (H, their mean) is then an
    average over the groups, and their largest magnitude is that of the whole input.
    """
    weight, stride, padding, dilation = args[1], args[3], args[4], args[5]
    groups = args[6] if len(args) > 6 else 1
    if isinstance(padding, str):
        padding = tuple(
            d * (k - 1) // 2 if padding == "same" else 0 for d, k in zip(dilation, weight.shape[2:], strict=True)
        )
    apart = x.reshape(-1, x.shape[1] // groups, *x.shape[2:])
    columns = F.unfold(apart, weight.shape[2:], dilation, padding, stride)
    return columns.mT.reshape(-1, columns.shape[1])


@dataclass
class Group:
    """Weights that multiply one and the same input.

    Attributes:
        targets: in the order of their products; each with one matrix.
        maker: name of the parameters that make the input and can absorb a factor per channel: a norm's weight (and
            bias), or the rows of the linear layer whose output is multiplied into the input.
        rows: whether ``maker`` is a matrix whose rows are the channels.
        offset: what the maker adds to its weight before multiplying: 1 for Gemma's norms.
        why: why nothing can absorb a factor, where ``maker`` is empty.
    """

    targets: list[Target]
    maker: tuple[str, ...] = ()
    rows: bool = False
    offset: float = 0.0
    why: str = ""

    @property
    def name(self) -> str:
        """Name of the first weight."""
        return self.targets[0].name


@dataclass
class _Trace:
    """What one forward pass showed; tensors are kept alive so that identities stay unique."""

    inputs: dict[int, list[Target]] = field(default_factory=dict)
    outputs: dict[int, Target] = field(default_factory=dict)
    factors: dict[int, Target] = field(default_factory=dict)
    norms: dict[int, tuple[str, nn.Module, Any]] = field(default_factory=dict)
    uses: dict[int, int] = field(default_factory=dict)
    alive: list[Tensor] = field(default_factory=list)


class _Tracer(Watch):
    def __init__(self, targets: list[Target], trace: _Trace) -> None:
        super().__init__(targets, lambda *found: None)
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        trace = self.trace
        tensors = [a for a in (*args, *(kwargs or {}).values()) if isinstance(a, Tensor)]
        if isinstance(out, Tensor):
            trace.alive.append(out)
        found = self.product(func, args)
        if found is not None:
            x = args[1] if func is torch.addmm else args[0]
            trace.alive.append(x)
            trace.inputs.setdefault(id(x), []).append(found[0])
            trace.outputs[id(out)] = found[0]
            return out
        if isinstance(out, Tensor | tuple | list) and not isinstance(
            out, torch.Size
        ):  # a shape is no use of the values
            for tensor in tensors:
                trace.uses[id(tensor)] = trace.uses.get(id(tensor), 0) + 1
        if func in _MULTIPLIES and isinstance(out, Tensor):
            makers = [trace.outputs[id(t)] for t in tensors if id(t) in trace.outputs and trace.uses[id(t)] == 1]
            if makers:
                trace.factors[id(out)] = makers[-1]
        return out


def _norms(model: nn.Module, trace: _Trace) -> Iterator[Any]:
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 1 and "Norm" in type(module).__name__:

            def note(module: nn.Module, args: Any, out: Any, name: str = name) -> None:
                if isinstance(out, Tensor):
                    trace.norms[id(out)] = (name, module, args)
                    trace.uses[id(out)] = 0
                    trace.alive.append(out)

            yield module.register_forward_hook(note)


@contextmanager
def _hooked(model: nn.Module, trace: _Trace) -> Iterator[None]:
    handles = list(_norms(model, trace))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def wiring(model: nn.Module, targets: list[Target], forward: Callable[[], object]) -> list[Group]:
    """Return the targets grouped by the input they share, from one forward pass; every target is in one group.

    Args:
        model: the module that ``forward`` runs (or one around it).
        targets: as `find_targets` returns them.
        forward: runs the model once on real input.
    """
    trace = _Trace()
    with _hooked(model, trace), _Tracer(targets, trace):
        forward()
    groups: list[Group] = []
    placed: set[str] = set()
    parameters = dict(model.named_parameters())
    for key, members in trace.inputs.items():
        fresh = list({t.name: t for t in members if t.name not in placed and t.kind != "experts"}.values())
        if fresh:
            placed |= {t.name for t in fresh}
            alike = [[t] for t in fresh] if fresh[0].kind == "Conv2d" else [fresh]  # kernels cut patches of their own
            groups += [_group(key, one, trace, parameters) for one in alike]
    groups += [Group([t], why=_lonely(t)) for t in targets if t.name not in placed]
    place = {t.name: i for i, t in enumerate(targets)}
    return sorted(groups, key=lambda g: place[g.name])


def _lonely(target: Target) -> str:
    return "experts see inputs of their own" if target.kind == "experts" else "met no input in the calibration"


def _group(key: int, members: list[Target], trace: _Trace, parameters: dict[str, nn.Parameter]) -> Group:
    if members[0].kind == "Conv2d":
        return Group(members, why="the channels of a convolution's input are not its columns")
    if key in trace.norms:
        name, module, args = trace.norms[key]
        if trace.uses.get(key, 0):
            return Group(members, why=f"{name} also feeds something else")
        offset = _offset(module, args)
        if offset is None:
            return Group(members, why=f"{name} does not multiply by its weight")
        return Group(members, tuple(n for n in (f"{name}.weight", f"{name}.bias") if n in parameters), offset=offset)
    if key in trace.factors and not trace.uses.get(key, 0):
        maker = trace.factors[key]
        bias = maker.name.removesuffix("weight") + "bias"
        if maker.kind == "Linear" and maker.shape[0] == members[0].shape[1]:
            return Group(members, tuple(n for n in (maker.name, bias) if n in parameters), rows=True)
    return Group(members, why="no norm and no linear layer makes this input directly")


def _offset(norm: nn.Module, args: Any) -> float | None:
    """Return c where the norm multiplies by ``c + weight`` (0, or 1 as Gemma's do), or None; found by trying."""
    kept = {name: p.detach().clone() for name, p in norm.named_parameters(recurse=False)}
    before = norm(*args)
    found = None
    for offset in (0.0, 1.0):
        for name, parameter in norm.named_parameters(recurse=False):
            parameter.data.copy_(2 * kept[name] + (offset if name == "weight" else 0.0))
        if torch.allclose(norm(*args), 2 * before, rtol=1e-3, atol=1e-6):
            found = offset
            break
    for name, parameter in norm.named_parameters(recurse=False):
        parameter.data.copy_(kept[name])
    return found


@dataclass
class Statistics:
    """Running facts of the rows that met one matrix.

    Attributes:
        hessian: sum of ``x^T x``, float32 ``[K, K]``, or None where nobody wants it.
        amax, total: largest and summed magnitude of each channel, ``[K]``.
        rows: rows seen.
        nonfinite: whether a NaN or an infinity was among them.
    """

    hessian: Tensor | None
    amax: Tensor
    total: Tensor
    rows: int = 0
    nonfinite: bool = False

    @staticmethod
    def empty(columns: int, device: torch.device, want_hessian: bool) -> "Statistics":
        """Return statistics of nothing."""
        h = torch.zeros(columns, columns, device=device) if want_hessian else None
        return Statistics(h, torch.zeros(columns, device=device), torch.zeros(columns, device=device))

    def add(self, rows: Tensor) -> None:
        """Take in ``rows`` ``[M, K]``."""
        x = rows.float()
        if self.hessian is not None:
            self.hessian.addmm_(x.mT, x)
        magnitude = x.abs()
        if len(x):
            self.amax = torch.maximum(self.amax, magnitude.amax(0))
            self.total += magnitude.sum(0)
            self.nonfinite = self.nonfinite or not bool(magnitude.amax().isfinite())
        self.rows += len(x)

    @property
    def mean(self) -> Tensor:
        """Mean magnitude of each channel."""
        return self.total / max(self.rows, 1)

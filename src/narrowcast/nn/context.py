"""What a layer's casts need besides the tensors: its name, the keys of its random bits, its step, its histories."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Unpack

import torch
from torch import Tensor

from narrowcast import backend
from narrowcast.accumulate import Codes, Operand, tensor_of
from narrowcast.formats import Stream
from narrowcast.nn.spec import OPERANDS, LinearSpec
from narrowcast.ops import Gemm, contraction_length, contraction_source
from narrowcast.passes import How
from narrowcast.quantize import Cast, QTensor
from narrowcast.scaling import advance

Gradients = tuple[Tensor | None, ...]

_SIGNS = 8  # stream numbers of the shared transforms follow the six operands


def in_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` in ``dtype`` without the call that changes nothing.

    Such a call gives a second name to one tensor. torch 2.11's compiler returns both from an autograd function, and the
    gradient of the result goes to the name that nobody reads: zero gradients, no error.
    """
    return x if x.dtype == dtype else x.to(dtype)


def output_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of what a layer makes of ``x``: autocast's where that is on."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def own_precision(backward: Callable[[Any, Tensor], Gradients]) -> Callable[[Any, Tensor], Gradients]:
    """Return an autograd function's backward pass as it is without autocast.

    The compiler traces it where the caller's autocast is still on, which would round the operands of emulated products.
    It does so twice if strides of ``g`` are asked for (it then makes ``g`` contiguous), and does not put autocast back
    in between (torch 2.11 and 2.13): so they are asked for before autocast is touched.
    """

    @wraps(backward)
    def run(ctx: Any, g: Tensor) -> Gradients:
        g.stride()
        with torch.autocast(g.device.type, enabled=False):
            return backward(ctx, g)

    return run


def reused(first: Operand, gemm: Gemm, count: int) -> Operand:
    """Return ``count`` columns of an earlier gemm's operand as ``gemm`` reuses them: codes, or what they decode to."""
    if gemm.accumulator.on_codes:
        assert isinstance(first, Codes)  # `LinearSpec` has seen to it
        return first.columns(count)
    return tensor_of(first)[:, :count]


def _cut(q: QTensor, shape: tuple[int, ...]) -> QTensor:
    """Return ``q`` as of ``shape``: what was padded before the cast is cut with the rest."""
    return q if q.shape == shape else replace(q, shape=shape)


@dataclass(frozen=True)
class Context:
    """Name, keys of random bits, step and histories of one layer, and what multiplies its three products."""

    site: str
    seed: int
    key: int
    step: Tensor | None
    history: Tensor | None
    alpha: float = 1.0

    def at(self, step: Tensor) -> "Context":
        """Return the same at the step that the forward pass saw."""
        return replace(self, step=step)

    def advance(self) -> None:
        """Move on, once the backward pass has used random bits and histories."""
        if self.step is not None:
            self.step.add_(1)
        if self.history is not None:
            advance(self.history)

    def stream(self, number: int) -> Stream | None:
        """Return the stream of operand (or shared transform) ``number`` of this layer."""
        if self.step is None:
            return None
        return Stream(self.seed, self.key << 4 | number, self.step)

    def cast(self, gemm: Gemm, label: str, operand: Cast, x: Tensor, shared: int) -> tuple[Tensor, Operand]:
        """Return (source after padding and rotation, result of the cast) for operand ``label``.

        The result is `Codes` where the gemm's accumulator works on them.
        """
        source, stream, history, what = self.ready(gemm, label, operand, x, shared)
        narrow = operand.split if gemm.accumulator.on_codes else operand.apply
        return source, narrow(source, stream, history, what)

    def narrow(self, spec: LinearSpec, label: str, wide: Tensor) -> QTensor:
        """Return codes and scales of operand ``label`` by kernels, cast from ``wide``."""
        position, operand = OPERANDS.index(label) // 2, spec.operand(label)
        assert isinstance(operand, Cast)
        gemm = (spec.fwd, spec.dgrad, spec.wgrad)[position]
        made = backend.narrow(operand, *self.ready(gemm, label, operand, wide, position))
        return _cut(made, tuple(wide.shape))

    def narrow_both(
        self, spec: LinearSpec, first: str, second: str, given: Tensor, **how: Unpack[How]
    ) -> tuple[QTensor, QTensor]:
        """Return operand ``first``, cast from ``given`` ``[..., K]``, and ``second``, of its transpose, cast or reused.

        In one pass where a kernel makes both at once: where nothing is padded, rotated or remembered twice. ``how``:
        ``after`` and ``like`` of `How`; the rest is the layer's.
        """
        cast, other = spec.operand(first), spec.operand(second)
        assert isinstance(cast, Cast)
        wide = given if given.dim() == 2 else given.reshape(-1, given.shape[-1])
        position, across = OPERANDS.index(first) // 2, OPERANDS.index(second) // 2
        gemms = (spec.fwd, spec.dgrad, spec.wgrad)
        plain = gemms[position].transform is None and gemms[across].transform is None
        if plain and not isinstance(other, Cast):
            source, stream, history, what = self.ready(gemms[position], first, cast, wide, position)
            how |= {"stream": stream, "history": history, "what": what}
            made = backend.narrow_both(given if source is wide else source, cast, None, **how)
        elif plain and isinstance(other, Cast) and cast.scale.delayed is None and other.scale.delayed is None:
            source, stream, _, what = self.ready(gemms[position], first, cast, wide, position)
            turned, other_stream, _, _ = self.ready(gemms[across], second, other, wide.mT, across)
            whole = source.shape == turned.shape[::-1] == wide.shape
            how |= {"stream": stream, "across_stream": other_stream, "what": what}
            made = backend.narrow_both(given, cast, other, **how) if whole else None
        else:
            made = None
        if made is None:
            one = self.narrow(spec, first, wide)
            return one, self.narrow(spec, second, wide.mT) if isinstance(other, Cast) else backend.transposed(one)
        one, two = made
        shape = tuple(wide.shape)
        return _cut(one, shape), _cut(two, shape[::-1])

    def operand(self, spec: LinearSpec, label: str, wide: Tensor, first: Operand | None) -> tuple[Tensor, Operand]:
        """Return (source, result) of operand ``label``, from ``wide``, or from ``first`` (`reused`) where it reuses."""
        position = OPERANDS.index(label) // 2
        gemm = (spec.fwd, spec.dgrad, spec.wgrad)[position]
        operand = spec.operand(label)
        if isinstance(operand, Cast):
            return self.cast(gemm, label, operand, wide, position)
        assert first is not None
        if isinstance(first, Codes):
            shape, what = tuple(first.values.shape), f"layer {self.site!r}, operand {label}"
            codes = first.columns(contraction_length(gemm, shape, what))
            return tensor_of(codes), codes
        again = gemm.casts[OPERANDS.index(label) % 2]
        return self.cast(gemm, label, again, first, position)

    def turned(self, spec: LinearSpec, label: str, kept: Operand) -> Operand:
        """Return the result of operand ``label`` from what was kept of its tensor's other orientation."""
        across = kept.mT
        return self.operand(spec, label, tensor_of(across), across)[1]

    def ready(
        self, gemm: Gemm, label: str, operand: Cast, x: Tensor, shared: int
    ) -> tuple[Tensor, Stream | None, Tensor | None, str]:
        """Return source, random bits, history and name for the cast of operand ``label``."""
        number = OPERANDS.index(label)
        what = f"layer {self.site!r}, operand {label}"
        source = contraction_source(gemm, x, self.stream(_SIGNS + shared), what)
        history = None
        if operand.scale.delayed is not None and self.history is not None:
            history = self.history[number, : operand.scale.delayed.length + 1]
        return source, self.stream(number), history, what

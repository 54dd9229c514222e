"""What is kept for the backward pass: tensors on one side, everything else on the other.

What the backward pass makes again from codes it makes from `tied` ones, lest a compiler keeps the result instead.
"""

from dataclasses import replace

import torch
from torch import Tensor

from narrowcast.accumulate import Codes
from narrowcast.passes import later
from narrowcast.quantize import Cast, QTensor
from narrowcast.scaling import Narrow

Kept = QTensor | Codes | Tensor  # an operand as a native gemm takes it, as an accumulator on codes does, or decoded
Form = tuple[Cast, tuple[int, ...], tuple[int, ...], torch.dtype, int] | float | None
_SHORT = ("bfloat16", "float16")  # formats of scales that decode from 16-bit integers too; usually they are 32-bit


def tensors_of(x: Kept) -> list[Tensor]:
    """Return the tensors of ``x``: itself, or codes, scales (of 16 bits in 16) and the tensor's scale."""
    if isinstance(x, Codes):
        return [x.values] if x.scale is None else [x.values, x.scale]
    if not isinstance(x, QTensor):
        return [x]
    scales = x.scales.to(torch.int16) if _short(x.cast, x.scales) else x.scales
    return [x.codes, scales, *([] if x.tensor_scale is None else [x.tensor_scale])]


def form_of(x: Kept) -> Form:
    """Return the rest of ``x``, which is no tensor."""
    if isinstance(x, Codes):
        return x.smallest_normal
    return (x.cast, x.shape, x.padded, x.dtype, x.axis) if isinstance(x, QTensor) else None


def again(tensors: list[Tensor], form: Form) -> Kept:
    """Return what `tensors_of` and `form_of` took apart."""
    if form is None:
        return tensors[0]
    if isinstance(form, float):
        return Codes(tensors[0], tensors[1] if len(tensors) > 1 else None, form)
    cast, shape, padded, dtype, axis = form
    codes, scales, *rest = tensors
    return QTensor(codes, scales, rest[0] if rest else None, cast, shape, padded, dtype, None, axis)


def codes_again(tensors: list[Tensor], forms: list[Form]) -> list[QTensor]:
    """Return several operands that are all codes, each taken apart into equally many tensors, one after the other."""
    each = len(tensors) // len(forms)
    found = [again(tensors[i * each : (i + 1) * each], form) for i, form in enumerate(forms)]
    return [q for q in found if isinstance(q, QTensor)]


def tied(q: QTensor, gradient: Tensor) -> QTensor:
    """Return ``q``, in compiled code not to be decoded before ``gradient`` is there (`passes.later`)."""
    return replace(q, codes=later(q.codes, gradient), scales=later(q.scales, gradient))


def _short(cast: Cast, scales: Tensor) -> bool:
    return scales.dtype == torch.int32 and isinstance(cast.scale, Narrow) and cast.scale.format.name in _SHORT

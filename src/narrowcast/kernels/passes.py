"""The operations of `narrowcast.passes` by kernels, with its signatures and its bits.

Rows must be contiguous in memory; what is not is copied first. Where a scale needs a maximum that no single program
sees (of the whole tensor, of rows, of columns), a pass before it finds that, and the pass that follows walks backwards,
so that what was read last is still in the cache. A delayed scale needs none: the maximum is found on the way, and only
where the history is empty or a value is not finite does a second go do the work again.
"""

from typing import Unpack

import torch
from torch import Tensor

from narrowcast import passes as plain
from narrowcast.errors import InputError
from narrowcast.formats import Stream
from narrowcast.formats.lookup import constant
from narrowcast.kernels import both_ops as both_ops  # registers the operators
from narrowcast.kernels.native import _counter, largest
from narrowcast.kernels.produce import Producer
from narrowcast.kernels.quantize import tiles_shape
from narrowcast.kernels.sides import Shape, reason, same_codes, tile_kind, turned
from narrowcast.passes import How, Two, later
from narrowcast.quantize import Cast, QTensor
from narrowcast.quantize import cast as cast_of

BLOCK = 128  # rows of the tallest block of a pass

Sources = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, str]


def quantize_both(
    x: Tensor,
    cast: Cast,
    across: Cast | None = None,
    *,
    stream: Stream | None = None,
    across_stream: Stream | None = None,
    history: Tensor | None = None,
    what: str = "tensor",
    after: Tensor | None = None,
    like: Tensor | None = None,
) -> Two:
    """Return both orientations of ``x``: `passes.quantize_both` in one pass, or two where maxima come first."""
    like = None if like is None else like.reshape(-1, x.shape[-1])
    how: How = {"stream": stream, "across_stream": across_stream, "history": history, "what": what}
    how |= {"after": after, "like": like}
    if x.numel() == 0:
        return plain.quantize_both(x, cast, across, **how)
    return _run(Producer(), (x,), None, None, cast, across, how)


def stacked_both(x: Tensor, y: Tensor, cast: Cast, across: Cast | None = None, **how: Unpack[How]) -> Two:
    """Return what `passes.stacked_both` does; both are copied into one first where a block would lie in both."""
    if x.shape[0] % BLOCK or x.numel() == 0:
        return quantize_both(torch.cat([x, y]), cast, across, **how)
    return _run(Producer("stacked"), (x, y), None, None, cast, across, how)


def rms_norm_both(
    x: Tensor, weight: Tensor, eps: float, cast: Cast, across: Cast | None = None, **how: Unpack[How]
) -> tuple[Two, Tensor]:
    """Return what `passes.rms_norm_both` does: one pass for 1 / rms, one that norms and casts."""
    if x.numel() == 0:
        return plain.rms_norm_both(x, weight, eps, cast, across, **how)
    x = _rows(x)
    inverse = torch.ops.narrowcast.inverse_rms(x, None, eps)[1]
    return _run(Producer("norm", lines=True), (x,), inverse, weight, cast, across, how), inverse


def add_rms_norm_both(
    x: Tensor, delta: Tensor, weight: Tensor, eps: float, cast: Cast, across: Cast | None = None, **how: Unpack[How]
) -> tuple[Tensor, Two, Tensor]:
    """Return what `passes.add_rms_norm_both` does: one pass that adds, for 1 / rms; one that norms and casts."""
    if x.numel() == 0:
        return plain.add_rms_norm_both(x, delta, weight, eps, cast, across, **how)
    _alike(x, delta)
    total, inverse = torch.ops.narrowcast.inverse_rms(_rows(x), _rows(delta), eps)
    return total, _run(Producer("norm", lines=True), (total,), inverse, weight, cast, across, how), inverse


def rms_norm_backward_both(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    inverse: Tensor,
    also: Tensor | None,
    cast: Cast,
    across: Cast | None = None,
    **how: Unpack[How],
) -> tuple[Tensor, Tensor, Two]:
    """Return what `passes.rms_norm_backward_both` does: one pass over rows, one that casts what it wrote, backwards."""
    dx, dw = rms_norm_backward(g, x, weight, inverse, also)
    return dx, dw, quantize_both(dx, cast, across, **how)


def rms_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, also: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what `passes.rms_norm_backward` does, in one pass."""
    if x.numel() == 0:
        return plain.rms_norm_backward(g, x, weight, inverse, also)
    _alike(x, g, also)
    found: tuple[Tensor, Tensor] = torch.ops.narrowcast.rms_norm_backward(
        _rows(g), _rows(x), weight, inverse, None if also is None else _rows(also)
    )
    return found


def smooth_scale(up: Tensor) -> Tensor:
    """Return what `passes.smooth_scale` does."""
    if up.numel() == 0:
        return plain.smooth_scale(up)
    found: Tensor = torch.ops.narrowcast.smooth_scale(_rows(up))
    return found


def swiglu_both(
    gate: Tensor,
    up: Tensor,
    cast: Cast,
    across: Cast | None = None,
    *,
    scale: Tensor | None = None,
    **how: Unpack[How],
) -> Two:
    """Return what `passes.swiglu_both` does, in one pass (two where maxima come first)."""
    if gate.numel() == 0:
        return plain.swiglu_both(gate, up, cast, across, scale=scale, **how)
    line = None if scale is None else scale.reciprocal()
    return _run(Producer("swiglu", line is not None), (gate, up), line, None, cast, across, how)


def swiglu_backward_both(
    g: Tensor,
    gate: Tensor,
    up: Tensor,
    cast: Cast,
    across: Cast | None = None,
    *,
    scale: Tensor | None = None,
    **how: Unpack[How],
) -> Two:
    """Return what `passes.swiglu_backward_both` does, in one pass (two where maxima come first)."""
    if gate.numel() == 0:
        return plain.swiglu_backward_both(g, gate, up, cast, across, scale=scale, **how)
    line = None if scale is None else scale.reciprocal()
    return _run(Producer("swiglu-backward", line is not None), (g, gate, up), line, None, cast, across, how)


def gelu_both(x: Tensor, cast: Cast, across: Cast | None = None, **how: Unpack[How]) -> Two:
    """Return what `passes.gelu_both` does, in one pass (two where maxima come first)."""
    if x.numel() == 0:
        return plain.gelu_both(x, cast, across, **how)
    return _run(Producer("gelu"), (x,), None, None, cast, across, how)


def gelu_backward_both(g: Tensor, x: Tensor, cast: Cast, across: Cast | None = None, **how: Unpack[How]) -> Two:
    """Return what `passes.gelu_backward_both` does, in one pass (two where maxima come first)."""
    if x.numel() == 0:
        return plain.gelu_backward_both(g, x, cast, across, **how)
    return _run(Producer("gelu-backward"), (g, x), None, None, cast, across, how)


# --- how ---


def _run(
    make: Producer,
    inputs: tuple[Tensor, ...],
    line: Tensor | None,
    column: Tensor | None,
    cast: Cast,
    across: Cast | None,
    how: How,
) -> Two:
    """Return both orientations of what ``make`` makes of its inputs ``[M, K]`` and of numbers for rows and columns.

    A single input may be ``[..., K]``: operators take it as it is (`both_ops.matrix`).
    """
    x, what = inputs[0], how.get("what", "tensor")
    if across is not None and same_codes(cast, across):
        across = None
    stream, across_stream = how.get("stream"), how.get("across_stream")
    source = (x.numel() // x.shape[-1], x.shape[-1])
    shape = make.shape(source)
    _alike(*inputs)
    why = against(source, make.parts, cast, across)
    if why is not None:
        raise InputError(f"{what}: no kernel: {why}; use backend 'emulate'")
    for narrow, given in ((cast, stream), (across, across_stream)):
        if narrow is not None and narrow.random and given is None:
            raise InputError(f"cast {narrow} draws random bits: pass a Stream")
    sizes = Shape.of(shape, cast, across, what)
    y, z = (_rows(inputs[i]) if len(inputs) > i else None for i in (1, 2))
    sources = (_rows(x), y, z, line, column, make.kind)
    spelled = (cast.spelling, across.spelling if across is not None else "")
    bits = _counter(stream, x.device)
    if cast.scale.delayed is not None:
        history = how.get("history")
        if history is None:
            raise InputError(f"cast {cast} scales by a history: pass history=Delayed.new()")
        found = torch.ops.narrowcast.both_delayed(*sources, spelled[0], history, *bits)
    else:
        like = how.get("like")
        first, second = _maxima(sources if like is None else (_rows(like), *sources[1:]), cast, across)
        maxima = later(first, how.get("after")), later(second, how.get("after"))
        found = torch.ops.narrowcast.both(*sources, *spelled, *maxima, *bits, *_counter(across_stream, x.device))
    return _pair(found, cast, across, shape, sizes, x.dtype, stream, across_stream)


def against(shape: tuple[int, ...], parts: int, cast: Cast, across: Cast | None) -> str | None:
    """Return why no kernel makes codes of ``parts`` matrices of ``shape`` side by side, or None where one does."""
    if across is not None and same_codes(cast, across):
        across = None
    rows, cols = shape
    why = _no_kernel(cast.spelling, across.spelling if across is not None else "")
    if why is None and (cast.random or (across is not None and across.random)) and (rows % 8 or cols % 8):
        why = f"shape {(rows, cols)}: random bits for both orientations need sizes that are multiples of 8"
    if why is None and parts > 1 and cast.tile.cols and cols % cast.tile.cols:
        why = f"shape {(rows, cols)}: a tile of {cast} reaches over both halves of {(rows, 2 * cols)}"
    return why


@constant
def _no_kernel(cast: str, across: str) -> str | None:
    return reason(cast_of(cast), cast_of(across) if across else None)


def _alike(x: Tensor, *others: Tensor | None) -> None:
    """Raise InputError unless all are matrices of one shape and one dtype that kernels read; one alone may be more."""
    if x.dim() < 2 or (others and x.dim() != 2) or x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise InputError(f"kernels take matrices of float32, bfloat16 or float16; found {x.dtype} {tuple(x.shape)}")
    for other in others:
        if other is not None and (other.shape, other.dtype) != (x.shape, x.dtype):
            raise InputError(
                f"inputs differ: {x.dtype} {tuple(x.shape)} and {other.dtype} {tuple(other.shape)}; "
                "give them one shape and one dtype"
            )


def _rows(x: Tensor) -> Tensor:
    """Return ``x`` with neighbours of a row side by side in memory; of more axes than two, contiguous."""
    return x if x.dim() == 2 and x.stride(-1) == 1 and x.stride(0) >= x.shape[1] else x.contiguous()


def _maxima(sources: Sources, cast: Cast, across: Cast | None) -> tuple[Tensor | None, Tensor | None]:
    """Return the maxima that either side is given, by a pass before it."""
    kinds = [tile_kind(c) for c in (cast, across) if c is not None]
    if "tensor" not in kinds and "line" not in kinds:
        return None, None
    whole = rows = columns = None
    if "tensor" in kinds:
        whole = _largest(sources) if torch.compiler.is_compiling() else None
        whole = torch.ops.narrowcast.both_amax(*sources) if whole is None else whole
    if "line" in kinds:
        rows, columns = torch.ops.narrowcast.row_and_column_amax(*sources)
    first = {"tensor": whole, "line": rows}.get(kinds[0])
    return first, {"tensor": whole, "line": columns}.get(kinds[1]) if len(kinds) > 1 else None


def _largest(sources: Sources) -> Tensor | None:
    """Return the largest magnitude by the compiler's own operations; None where a kernel makes the numbers."""
    inputs = {"plain": sources[:1], "stacked": sources[:2]}.get(sources[-1], ())
    found = [largest(x) for x in inputs if x is not None]
    return torch.maximum(*found) if len(found) > 1 else found[0] if found else None


def _pair(
    found: tuple[Tensor, Tensor, Tensor, Tensor],
    cast: Cast,
    across: Cast | None,
    shape: tuple[int, int],
    sizes: Shape,
    dtype: torch.dtype,
    stream: Stream | None,
    across_stream: Stream | None,
) -> Two:
    """Return the two `QTensor` of what the operator wrote."""
    codes, scales, other_codes, other_scales = found
    other, back = across or turned(cast), (shape[1], shape[0])
    padded, other_padded = (sizes.rows, sizes.cols), (sizes.turned_rows, sizes.turned_cols)
    first = _scales(scales, cast, padded)
    second = _scales(other_scales, other, other_padded) if across else _turned_scales(first)
    if across is None:
        across_stream = stream
    return (
        QTensor(codes, first, None, cast, shape, padded, dtype, stream),
        QTensor(other_codes, second, None, other, back, other_padded, dtype, across_stream, axis=0),
    )


def _scales(stored: Tensor, cast: Cast, padded: tuple[int, int]) -> Tensor:
    """Return scales in the shape of `Scale.stored`, rows of the matrix side by side in memory."""
    shape = tiles_shape(cast, padded)
    if not cast.scale.bits:
        return torch.ones(shape, device=stored.device)
    kind = tile_kind(cast)
    if kind == "run":
        return stored.mT.unsqueeze(-1)
    return stored.mT.unsqueeze(1).unsqueeze(-1) if kind == "square" else stored.view(shape)


def _turned_scales(scales: Tensor) -> Tensor:
    return scales.permute(2, 3, 0, 1) if scales.dim() == 4 else scales

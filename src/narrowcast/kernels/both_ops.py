"""Torch operators of the passes over both orientations: for `torch.compile`, checkpointing and CUDA graphs."""

import torch
from torch import Tensor

from narrowcast.kernels import rows
from narrowcast.kernels.both_launch import Four, empty, launch, launch_maxima
from narrowcast.kernels.produce import Producer
from narrowcast.kernels.quantize import Counter
from narrowcast.quantize import cast as cast_of


def matrix(x: Tensor) -> Tensor:
    """Return ``x`` ``[..., K]`` as a matrix.

    Here and not in what calls an operator: the compiler makes a sum again for each of its readers where one of them
    reads a view of it, so the sums of gradients along a residual stream would grow with every layer.
    """
    return x.reshape(-1, x.shape[-1])


def _counter_of(bits: tuple[int, int, int, Tensor | None]) -> Counter:
    seed, tensor, step, step_tensor = bits
    return Counter.of(seed, tensor, step if step_tensor is None else step_tensor)


@torch.library.custom_op("narrowcast::both", mutates_args=())
def _both(
    x: Tensor,
    y: Tensor | None,
    z: Tensor | None,
    line: Tensor | None,
    column: Tensor | None,
    kind: str,
    cast: str,
    across: str,
    amax: Tensor | None,
    across_amax: Tensor | None,
    seed: int,
    tensor: int,
    step: int,
    step_tensor: Tensor | None,
    across_seed: int,
    across_tensor: int,
    across_step: int,
    across_step_tensor: Tensor | None,
) -> Four:
    counters = (
        _counter_of((seed, tensor, step, step_tensor)),
        _counter_of((across_seed, across_tensor, across_step, across_step_tensor)),
    )
    second = cast_of(across) if across else None
    with torch.cuda.device_of(x):
        return launch((matrix(x), y, z, line, column), kind, cast_of(cast), second, (amax, across_amax), counters)


@_both.register_fake
def _(
    x: Tensor, y: object, z: object, line: object, column: object, kind: str, cast: str, across: str, *_: object
) -> Four:
    return empty(matrix(x), kind, cast, across)


@torch.library.custom_op("narrowcast::both_delayed", mutates_args=("history",))
def _both_delayed(
    x: Tensor,
    y: Tensor | None,
    z: Tensor | None,
    line: Tensor | None,
    column: Tensor | None,
    kind: str,
    cast: str,
    history: Tensor,
    seed: int,
    tensor: int,
    step: int,
    step_tensor: Tensor | None,
) -> Four:
    """Scale by the history and find the maximum in one pass; a second goes where there is none or x is not finite."""
    narrow, sources = cast_of(cast), (matrix(x), y, z, line, column)
    bits = _counter_of((seed, tensor, step, step_tensor))
    current = torch.zeros(1, dtype=torch.int32, device=x.device)
    with torch.cuda.device_of(x):
        outs = launch(sources, kind, narrow, None, counters=(bits, bits), delayed=("first", history, current))
        return launch(
            sources, kind, narrow, None, counters=(bits, bits), delayed=("again", history, current), outs=outs
        )


@_both_delayed.register_fake
def _(x: Tensor, y: object, z: object, line: object, column: object, kind: str, cast: str, *_: object) -> Four:
    return empty(matrix(x), kind, cast, "")


@torch.library.custom_op("narrowcast::both_amax", mutates_args=())
def _both_amax(
    x: Tensor, y: Tensor | None, z: Tensor | None, line: Tensor | None, column: Tensor | None, kind: str
) -> Tensor:
    with torch.cuda.device_of(x):
        return launch_maxima((matrix(x), y, z, line, column), kind, True)


@_both_amax.register_fake
def _(x: Tensor, *_: object) -> Tensor:
    return x.new_empty(1, dtype=torch.float32)


@torch.library.custom_op("narrowcast::row_and_column_amax", mutates_args=())
def _row_and_column_amax(
    x: Tensor, y: Tensor | None, z: Tensor | None, line: Tensor | None, column: Tensor | None, kind: str
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x):
        x = matrix(x)
        found = launch_maxima((x, y, z, line, column), kind, False)
        rows = Producer(kind).shape((x.shape[0], x.shape[1]))[0]
        return found[:rows].clone(), found[rows:].clone()


@_row_and_column_amax.register_fake
def _(x: Tensor, y: object, z: object, line: object, column: object, kind: str) -> tuple[Tensor, Tensor]:
    x = matrix(x)
    rows, cols = Producer(kind).shape((x.shape[0], x.shape[1]))
    return x.new_empty(rows, dtype=torch.float32), x.new_empty(cols, dtype=torch.float32)


@torch.library.custom_op("narrowcast::inverse_rms", mutates_args=())
def _inverse_rms(x: Tensor, delta: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x):
        return rows.inverse_rms_of(x, delta, eps)


@_inverse_rms.register_fake
def _(x: Tensor, delta: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    total = x.new_empty(x.shape if delta is not None else (0,))
    return total, x.new_empty(x.shape[0], 1, dtype=torch.float32)


@torch.library.custom_op("narrowcast::smooth_scale", mutates_args=())
def _smooth_scale(up: Tensor) -> Tensor:
    with torch.cuda.device_of(up):
        return rows.smooth_scale_of(up)


@_smooth_scale.register_fake
def _(up: Tensor) -> Tensor:
    return up.new_empty(up.shape[0], 1, dtype=torch.float32)


@torch.library.custom_op("narrowcast::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    g: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, also: Tensor | None
) -> tuple[Tensor, Tensor]:
    with torch.cuda.device_of(x):
        return rows.norm_backward(g, x, weight, inverse, also)


@_rms_norm_backward.register_fake
def _(g: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, also: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[1], dtype=torch.float32)

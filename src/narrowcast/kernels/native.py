"""Kernel twins with the signatures of their plain ones, as torch operators: for `torch.compile` and CUDA graphs.

An operator takes a cast by its spelling, so that a compiled graph holds nothing but tensors, numbers and text.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from narrowcast.errors import CheckFailed, InputError
from narrowcast.formats import Stream
from narrowcast.formats.packing import packed_size
from narrowcast.kernels import amax as amax_op
from narrowcast.kernels import quantize as quantize_op
from narrowcast.kernels.launch import given
from narrowcast.kernels.quantize import Counter
from narrowcast.names import dtype_name
from narrowcast.quantize import Cast, QTensor
from narrowcast.quantize import cast as cast_of


def quantize(
    cast: Cast, x: Tensor, stream: Stream | None = None, history: Tensor | None = None, what: str = "tensor"
) -> QTensor:
    """Return codes and scales of ``x`` ``[..., K]``: `Cast.quantize` by kernels, bit for bit.

    Any strides and leading axes; what is not contiguous is copied first. Arguments and errors as there.
    """
    if stream is None and cast.random:
        raise InputError(f"cast {cast} draws random bits: pass seed= or a Stream")
    padded = cast.padded_shape(tuple(x.shape), what)
    if prod(padded) == 0 or cast.own(x) is not None:
        return cast.quantize(x, stream, history, what)  # nothing to compute: only shapes, or a copy
    short = padded[-2] - x.shape[-2] if len(x.shape) > 2 else 0
    source = F.pad(x, (0, 0, 0, short)) if short else x  # each matrix of a batch is padded by itself
    bits = _counter(stream, x.device)
    maxima = _maxima(cast, source, history, bits, given(cast, padded[-1]))
    codes, scales, tensor_scale = torch.ops.narrowcast.quantize(source, cast.spelling, list(padded), *maxima, *bits)
    if not cast.scale.bits:
        scales = torch.ones(quantize_op.tiles_shape(cast, padded), device=x.device)
    second = tensor_scale if cast.scale.tensor_bits else None
    return QTensor(codes, scales, second, cast, tuple(x.shape), padded, x.dtype, stream)


def _counter(stream: Stream | None, device: torch.device) -> tuple[int, int, int, Tensor | None]:
    """Return seed and tensor as signed 64-bit numbers, and the step as a number or a tensor."""
    if stream is None:
        return 0, 0, 0, None
    seed = (stream.seed + (1 << 63)) % (1 << 64) - (1 << 63)
    if isinstance(stream.step, int):
        return seed, stream.tensor, stream.step, None
    return seed, stream.tensor, 0, stream.step.to(device)


def _maxima(
    cast: Cast, x: Tensor, history: Tensor | None, bits: tuple[int, int, int, Tensor | None], source: str
) -> tuple[Tensor | None, Tensor | None]:
    """Return the maxima that the pass over codes is given, of tiles and of the whole tensor, by passes before it."""
    if not cast.scale.needs_amax:
        return None, None
    padded = list(cast.padded_shape(tuple(x.shape)))
    whole = tiles = None
    if source == "one" and cast.transform is None and torch.compiler.is_compiling():
        whole = largest(x.reshape(-1, x.shape[-1]))
    elif source == "one" or cast.scale.tensor_bits:
        whole = torch.ops.narrowcast.amax(x, cast.spelling, padded, False, *bits)
    if source == "row":
        tiles = torch.ops.narrowcast.amax(x, cast.spelling, padded, True, *bits)
    elif source == "one":
        tiles = whole
    if cast.scale.delayed is not None:
        if history is None:
            raise InputError(f"cast {cast} scales by a history: pass history=Delayed.new()")
        if not cast.tile.is_tensor:
            raise InputError(f"cast {cast}: kernels keep histories of whole tensors only")
        assert whole is not None
        tiles = cast.scale.delayed.amax(history, whole[0]).view(1)
    return tiles, whole if cast.scale.tensor_bits else None


def largest(x: Tensor) -> Tensor:
    """Return the largest magnitude of a matrix, float32 ``[1]``, in operations that the compiler joins to others.

    First of each row, in the dtype of ``x``: that joins what made the row, a norm or a gate, and saves the reading.
    What the compiler keeps wider on the way is rounded where it is stored, which commutes with a maximum.
    """
    return x.abs().amax(dim=-1).amax().float().view(1)


@contextmanager
def named(kernel: str, cast: str, x: Tensor) -> Iterator[None]:
    """Name the kernel and the shape where Triton cannot compile it; it is never replaced in silence."""
    try:
        yield
    except triton.TritonError as error:
        line = str(error).strip().splitlines()[-1].strip()
        what = f"kernel {kernel}, cast {cast}, {dtype_name(x.dtype)} {list(x.shape)}"
        raise CheckFailed(f"{what}: Triton {triton.__version__} does not compile it here: {line}") from error


@torch.library.custom_op("narrowcast::quantize", mutates_args=())
def _quantize(
    x: Tensor,
    cast: str,
    padded: list[int],
    maxima: Tensor | None,
    whole: Tensor | None,
    seed: int,
    tensor: int,
    step: int,
    step_tensor: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    bits = Counter.of(seed, tensor, step if step_tensor is None else step_tensor)
    with torch.cuda.device_of(x), named("quantize", cast, x):
        return quantize_op.codes_and_scales(x.contiguous(), cast_of(cast), tuple(padded), maxima, whole, bits)


@_quantize.register_fake
def _(
    x: Tensor, cast: str, padded: list[int], maxima: Tensor | None, whole: Tensor | None, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    narrow = cast_of(cast)
    codes = x.new_empty(*padded[:-1], packed_size(padded[-1], narrow.format.bits), dtype=torch.uint8)
    scales = x.new_empty(quantize_op.scales_shape(narrow, tuple(padded)), dtype=quantize_op.scales_dtype(narrow))
    return codes, scales, x.new_empty((), dtype=torch.float32)


@torch.library.custom_op("narrowcast::amax", mutates_args=())
def _amax(
    x: Tensor,
    cast: str,
    padded: list[int],
    by_row: bool,
    seed: int,
    tensor: int,
    step: int,
    step_tensor: Tensor | None,
) -> Tensor:
    narrow = cast_of(cast)
    with torch.cuda.device_of(x), named("amax", cast, x):
        bits = Counter.of(seed, tensor, step if step_tensor is None else step_tensor)
        flips = quantize_op.flips(narrow.transform, bits, x)
        return amax_op.amax(x.contiguous(), narrow, tuple(padded), flips, by_row)


@_amax.register_fake
def _(x: Tensor, cast: str, padded: list[int], by_row: bool, *_: object) -> Tensor:
    return x.new_empty(prod(padded[:-1]) if by_row else 1, dtype=torch.float32)

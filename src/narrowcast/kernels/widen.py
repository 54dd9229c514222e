"""Narrow elements times the scales of their blocks, in bfloat16, by one pass: the kernel twin of `gemm.exact_values`.

For each element of 4 bits half a byte is read and two are written. What bytes and scales stand for lies in tables.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from narrowcast.formats import format
from narrowcast.kernels.native import named
from narrowcast.kernels.produce import rounded
from narrowcast.kernels.rebase import WARPS, words_as, words_of
from narrowcast.kernels.rounding import bits_of, float_of
from narrowcast.quantize import cast as cast_of
from narrowcast.scaling import Narrow, TwoLevel


@triton.jit
def widen_kernel(
    codes_ptr, scales_ptr, values_ptr, powers_ptr, made_ptr, words, tall, PER: tl.constexpr, BITS: tl.constexpr,
    SIZE: tl.constexpr,
):  # fmt: skip
    """Write the bfloat16 values of SIZE words of a row."""
    row = tl.program_id(0).to(tl.int64)
    at, word, code, inside = words_of(codes_ptr, scales_ptr, row, tl.program_id(1), tall, words, PER, BITS, SIZE)
    scale = tl.load(powers_ptr + code)
    if BITS == 4:
        even = tl.join(scaled(values_ptr, word, 0, scale, BITS), scaled(values_ptr, word, 16, scale, BITS))
        odd = tl.join(scaled(values_ptr, word, 8, scale, BITS), scaled(values_ptr, word, 24, scale, BITS))
        four = (row * words + at)[:, None] * 4 + tl.arange(0, 4)[None, :]
        tl.store(made_ptr + four, tl.reshape(tl.join(even, odd), [SIZE, 4]), mask=inside[:, None])
    else:
        first, second = (scaled(values_ptr, word, 0, scale, BITS), scaled(values_ptr, word, 16, scale, BITS))
        low = ((first >> 16) & 0xFFFF) | scaled(values_ptr, word, 8, scale, BITS)
        high = ((second >> 16) & 0xFFFF) | scaled(values_ptr, word, 24, scale, BITS)
        both = (row * words + at)[:, None] * 2 + tl.arange(0, 2)[None, :]
        tl.store(made_ptr + both, tl.join(low, high), mask=inside[:, None])


@triton.jit
def scaled(values_ptr, word, SHIFT: tl.constexpr, scale, BITS: tl.constexpr):
    """Return the values of the byte of ``word`` that begins at bit SHIFT: the second, or the only one, above."""
    value = tl.load(values_ptr + ((word >> SHIFT) & 0xFF))
    found = bits_of(rounded(float_of(value & -65536) * scale, "bfloat16"))
    if BITS == 4:
        first = bits_of(rounded(float_of(value << 16) * scale, "bfloat16"))
        found = found | ((first >> 16) & 0xFFFF)
    return found


class Tables(NamedTuple):
    """What the kernel looks up.

    Attributes:
        values: int32 ``[256]``: values of a byte in bfloat16, of two codes of 4 bits the second above; of one, above 0.
        scales: float32 ``[256]``: of each scale's code.
    """

    values: Tensor
    scales: Tensor


@lru_cache(maxsize=64)
def tables(spelling: str, device: torch.device) -> Tables:
    """Return the tables of a cast."""
    narrow = cast_of(spelling)
    fmt, byte = narrow.format, torch.arange(256)
    values = fmt.decode(fmt.codes()).bfloat16().view(torch.int16).int()
    found = values[byte >> 4] << 16 | values[byte & 15] & 0xFFFF if fmt.bits == 4 else values[byte % len(values)] << 16
    scales = narrow.scale.format if isinstance(narrow.scale, Narrow | TwoLevel) else format("e8m0")
    return Tables(found.to(device), scales.decode(byte % (1 << scales.bits)).to(device))


def widen_codes(codes: Tensor, scales: Tensor, cast: str) -> Tensor:
    """Return `gemm.exact_values` of a matrix in bfloat16; `gemm.one_pass` has said that this can."""
    narrow = cast_of(cast)
    rows, bits = codes.shape[0], narrow.format.bits
    source, words, per, step = words_as(codes, bits, narrow.tile.cols)
    made = torch.empty(rows, codes.shape[1] * 4 // bits, dtype=torch.int32, device=codes.device)
    if made.numel():
        found = tables(cast, codes.device)
        with torch.cuda.device_of(codes), named("widen", cast, codes):
            widen_kernel[(rows, triton.cdiv(words, step))](
                source, scales.contiguous(), found.values, found.scales, made, words, narrow.tile.rows, PER=per,
                BITS=bits, SIZE=step, num_warps=WARPS, enable_fp_fusion=False,
            )  # fmt: skip
    return made.view(torch.bfloat16)


widen = torch.library.custom_op("narrowcast::widen", widen_codes, mutates_args=())


@widen.register_fake
def _(codes: Tensor, scales: Tensor, cast: str) -> Tensor:
    bits = cast_of(cast).format.bits
    return codes.new_empty(codes.shape[0], codes.shape[1] * 8 // bits, dtype=torch.bfloat16)

"""Codes under block scales as FP8 codes under one scale a row: the kernel twin of `rebased.rebase`.

One program a row, whose bytes it reads twice, from the cache the second time. For each element of 4 bits half a byte
is read and one written. Everything about the formats lies in `rebased.Tables`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from narrowcast.kernels.rebased import SAFE, Tables
from narrowcast.kernels.rounding import float_of
from narrowcast.kernels.shifts import ANYWHERE, REACH

SIZE, WARPS = 256, 2  # words of a program's step, at most


@triton.jit
def words_of(
    codes_ptr, scales_ptr, row, step, tall, words, PER: tl.constexpr, BITS: tl.constexpr, SIZE: tl.constexpr
):  # fmt: skip
    """Return SIZE words of a row from word ``step`` SIZE on, PER of them under one scale; all int32 ``[SIZE]``.

    A word is 8 codes of 4 bits, or 4 codes in a byte each; of 6 bits they lie in 3 bytes in memory.

    (place in the row; the word; the scale's code, 255 outside; whether the word exists)
    """
    at = step * SIZE + tl.arange(0, SIZE)
    inside = at < words
    if BITS == 6:
        word = tl.zeros([SIZE], tl.int32)
        for i in tl.static_range(3):
            byte = tl.load(codes_ptr + (row * words + at) * 3 + i, mask=inside, other=0).to(tl.int32)
            word = word | (byte << (8 * i))
        word = (word & 0x3F) | ((word & 0xFC0) << 2) | ((word & 0x3F000) << 4) | ((word & 0xFC0000) << 6)
    else:
        word = tl.load(codes_ptr + row * words + at, mask=inside, other=0)
    power = tl.load(scales_ptr + row // tall * (words // PER) + at // PER, mask=inside, other=255).to(tl.int32)
    return at, word, power, inside


@triton.jit
def rebase_kernel(
    codes_ptr, scales_ptr, limits_ptr, table_ptr, made_ptr, scale_ptr, lack_ptr, words, tall, constant,
    PER: tl.constexpr, BITS: tl.constexpr, FAR: tl.constexpr, NEAR: tl.constexpr, REACH: tl.constexpr,
    STEPS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Write a row's codes at its own base, the base's scale, and by how many binades the row misses.

    FAR: beyond all exponents; NEAR: the largest base; STEPS of SIZE words a row.
    """
    row = tl.program_id(0).to(tl.int64)
    smallest, largest = tl.full([SIZE], -FAR, tl.int32), tl.full([SIZE], FAR, tl.int32)
    for step in range(STEPS):
        at, word, power, inside = words_of(codes_ptr, scales_ptr, row, step, tall, words, PER, BITS, SIZE)
        for i in tl.static_range(4):
            limit = tl.load(limits_ptr + ((word >> (8 * i)) & 0xFF))
            smallest = tl.maximum(smallest, tl.where(power != 255, power - 127 - (limit >> 16), -FAR))
            largest = tl.minimum(largest, tl.where(power != 255, power - 127 - ((limit << 16) >> 16), FAR))
    wanted = tl.maximum(tl.max(smallest, 0), -NEAR)
    base = tl.minimum(wanted, NEAR)
    tl.store(lack_ptr + row, tl.maximum(wanted - tl.minimum(tl.min(largest, 0), NEAR), 0))
    tl.store(scale_ptr + row, float_of((base + 127) << 23) * constant)
    for step in range(STEPS):
        at, word, power, inside = words_of(codes_ptr, scales_ptr, row, step, tall, words, PER, BITS, SIZE)
        shift = tl.minimum(tl.maximum(power - 127 - base, -REACH), REACH)
        table = table_ptr + (tl.where(power == 255, REACH + 1, shift) + REACH) * 256
        if BITS == 4:
            low = pair_at(table, word, 0, 16) | (pair_at(table, word, 8, 16) << 16)
            high = pair_at(table, word, 16, 16) | (pair_at(table, word, 24, 16) << 16)
            both = (row * words + at)[:, None] * 2 + tl.arange(0, 2)[None, :]
            tl.store(made_ptr + both, tl.join(low, high), mask=inside[:, None])
        else:
            low = pair_at(table, word, 0, 8) | (pair_at(table, word, 8, 8) << 8)
            high = pair_at(table, word, 16, 8) | (pair_at(table, word, 24, 8) << 8)
            tl.store(made_ptr + row * words + at, low | (high << 16), mask=inside)


@triton.jit
def pair_at(table, word, SHIFT: tl.constexpr, BITS: tl.constexpr):
    """Return the BITS of ``table`` for the byte of ``word`` that begins at bit SHIFT."""
    return tl.load(table + ((word >> SHIFT) & 0xFF)).to(tl.int32) & ((1 << BITS) - 1)


def words_as(codes: Tensor, bits: int, cols: int) -> tuple[Tensor, int, int, int]:
    """Return codes as `words_of` takes them; words of a row and under one scale of ``cols``; how many a step takes."""
    words = codes.shape[1] // 3 if bits == 6 else codes.shape[1] // 4
    step = min(SIZE, triton.next_power_of_2(max(words, 1)))
    found = codes.contiguous()
    return found if bits == 6 else found.view(torch.int32), words, cols // (8 if bits == 4 else 4), step


def rebase(
    codes: Tensor, scales: Tensor, tables: Tables, tall: int, cols: int, constant: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `rebased.rebase` does."""
    rows, bits = codes.shape[0], tables.bits
    source, words, per, step = words_as(codes, bits, cols)
    made = torch.empty(rows, words * (2 if bits == 4 else 1), dtype=torch.int32, device=codes.device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=codes.device)
    lack = torch.empty(rows, dtype=torch.int32, device=codes.device)
    if made.numel():
        rebase_kernel[(rows,)](
            source, scales, tables.limits, tables.codes, made, scale, lack, words, tall, constant,
            PER=per, BITS=bits, FAR=ANYWHERE, NEAR=SAFE, REACH=REACH, STEPS=triton.cdiv(words, step), SIZE=step,
            num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return made.view(torch.uint8), scale, lack

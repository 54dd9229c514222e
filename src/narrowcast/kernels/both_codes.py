"""Device code: codes of both orientations, and how they are stored, for `kernels.both`."""

import triton
import triton.language as tl

from narrowcast.kernels.both_scales import joined
from narrowcast.kernels.encode import encode
from narrowcast.kernels.pack import packed
from narrowcast.kernels.rounding import eight_draws

_IN_PTX = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def encoded(y, poisoned, draw, A: tl.constexpr):
    """Return top-aligned codes of ``y``, the general way."""
    grid = ()
    if A.E.family == "float":
        one: tl.constexpr = [1, 1]
        grid = (
            tl.full(one, A.E.max, tl.float32),
            tl.full(one, A.E.anchor_least, tl.int32),
            tl.full(one, A.E.rebase, tl.float32),
        )
    element: tl.constexpr = A.E
    rounding: tl.constexpr = A.R
    way: tl.constexpr = A.W
    code = encode(y, grid, draw, element, rounding, way, A.tile == "one")
    if A.tile != "one":
        code = tl.where(poisoned, A.E.positive_nan, code)
    return code


@triton.jit
def row_draws(top, start, total, counter, R: tl.constexpr, L: tl.constexpr):
    """Return the draws of the R-th rows, [lines, width], in the order of a matrix of ``total`` columns."""
    tensor, step, k0, k1 = counter
    row = (top + tl.arange(0, L.lines)[:, None] * L.rows + R).to(tl.int64)
    draws = eight_draws((row * total + start >> 3) + tl.arange(0, L.width // 8)[None, :], tensor, step, k0, k1)
    return tl.reshape(joined(draws, 8), [L.lines, L.width])


@triton.jit
def column_draws(top, start, total, counter, L: tl.constexpr):
    """Return the draws of each of a thread's rows in the transpose, whose rows have ``total`` elements."""
    tensor, step, k0, k1 = counter
    column = (start + tl.arange(0, L.width)[None, :]).to(tl.int64)
    draws = ()
    for q in tl.static_range(L.rows // 8):
        row = top + tl.arange(0, L.lines)[:, None] * L.rows + 8 * q
        draws = draws + eight_draws(column * total + row >> 3, tensor, step, k0, k1)
    return draws


@triton.jit
def four_bytes(y0, y1, y2, y3, A: tl.constexpr):
    """Return one word of the codes of four numbers, by the processor's own conversion."""
    assembly: tl.constexpr = A.assembly
    return tl.inline_asm_elementwise(assembly, "=r,f,f,f,f", [y0, y1, y2, y3], tl.int32, True, 1)


@triton.jit
def four_columns(y, A: tl.constexpr):
    """Return the codes (int8) of ``y``, four neighbours at a time, by the processor's own conversion."""
    assembly: tl.constexpr = A.assembly
    return tl.inline_asm_elementwise(assembly, "=r,f,f,f,f", [y], tl.int8, True, 4)


@triton.jit
def codes_of(ys, poisons, draws, A: tl.constexpr, L: tl.constexpr):
    """Return the top-aligned codes of each of a thread's rows, the general way."""
    codes = ()
    for r in tl.static_range(L.rows + 0):
        codes = codes + (encoded(ys[r], poisons[r], draws[r], A),)
    return codes


@triton.jit
def words_of(ys, codes, B: tl.constexpr, L: tl.constexpr):
    """Return the codes of each thread's rows, four to a word."""
    words = ()
    count: tl.constexpr = L.rows // 4
    for q in tl.static_range(count):
        if _IN_PTX and B.hardware != "":
            word = four_bytes(ys[4 * q], ys[4 * q + 1], ys[4 * q + 2], ys[4 * q + 3], B)
        else:
            four = (codes[4 * q], codes[4 * q + 1], codes[4 * q + 2], codes[4 * q + 3])
            word = packed(four, 8, 4)[0]
        words = words + (word,)
    return words


@triton.jit
def bytes_in(codes, L: tl.constexpr):
    """Return top-aligned codes as bytes."""
    found = ()
    for r in tl.static_range(L.rows + 0):
        found = found + ((codes[r] >> 24).to(tl.int8),)
    return found


@triton.jit
def store_codes(ptr, code, top, left, start, total, padded_rows, padded_cols, R: tl.constexpr, L: tl.constexpr):
    """Store the codes of the R-th rows, [lines, width] int8."""
    row, column = top + tl.arange(0, L.lines)[:, None] * L.rows + R, tl.arange(0, L.width)[None, :]
    at = ptr + top.to(tl.int64) * total + start + ((row - top) * total + column)
    if L.mask:
        tl.store(at, code, mask=(row < padded_rows) & (left + column < padded_cols))
    else:
        tl.store(at, code)


@triton.jit
def store_turned(ptr, words, codes, top, left, start, padded_rows, padded_cols, L: tl.constexpr):
    """Store the codes of the transpose, whose rows have ``padded_cols`` of them: words of four, or bytes if ragged."""
    if L.ragged:
        for r in tl.static_range(L.rows + 0):
            row, column = top + tl.arange(0, L.lines)[:, None] * L.rows + r, tl.arange(0, L.width)[None, :]
            at = (start + column).to(tl.int64) * padded_cols + row
            tl.store(ptr + at, codes[r], mask=(row < padded_cols) & (left + column < padded_rows))
    else:
        count: tl.constexpr = L.rows // 4
        turned = tl.reshape(tl.permute(joined(words, count), [1, 0, 2]), [L.width, L.height // 4])
        column, word = tl.arange(0, L.width)[:, None], tl.arange(0, L.height // 4)[None, :]
        at = ptr.to(tl.pointer_type(tl.int32)) + (start.to(tl.int64) * padded_cols + top) // 4
        at = at + (column * (padded_cols // 4) + word)
        if L.mask:
            tl.store(at, turned, mask=(left + column < padded_rows) & (top + word * 4 < padded_cols))
        else:
            tl.store(at, turned)

"""One pass that reads a matrix once and writes the codes of both orientations: the kernel of `passes.quantize_both`.

A thread owns `Block.rows` rows of each of its columns, so that four codes of the transpose make a word without leaving
the thread, and words, not bytes, are exchanged between threads. Scales are written with rows of the matrix side by
side, in which order block-scaled products read them.

Bytes moved: the source, once; 8 bits an element for each orientation; the scales.
"""

import triton
import triton.language as tl

from narrowcast.kernels.both_codes import (
    bytes_in,
    codes_of,
    column_draws,
    encoded,
    four_columns,
    row_draws,
    store_codes,
    store_turned,
    words_of,
)
from narrowcast.kernels.both_scales import (
    held,
    joined,
    magnitudes,
    of_columns,
    of_lines,
    of_squares,
    of_tensor,
    scaled,
    taken,
    top_of_rows,
    tops_of_rows,
)
from narrowcast.kernels.produce import made, wide

_IN_PTX = tl.constexpr(not triton.knobs.runtime.interpret)
_INF = tl.constexpr(0x7F800000)


@triton.jit
def place(height, width, L: tl.constexpr):
    """Return the block (row, column) of this program, of ``height x width`` blocks."""
    index = tl.program_id(0)
    if L.backwards:
        index = height * width - 1 - index
    if L.group > 1:
        first = index // (L.group * width) * L.group
        size = tl.minimum(height - first, L.group)
        row, column = first + index % (L.group * width) % size, index % (L.group * width) // size
    else:
        row, column = index // width, index % width
    return row, column


@triton.jit
def loaded(x_ptr, stride, top, left, rows, cols, R: tl.constexpr, L: tl.constexpr):
    """Return the float32 rows that are R-th of their thread, [lines, width]; what does not exist is 0."""
    line, column = tl.arange(0, L.lines)[:, None], tl.arange(0, L.width)[None, :]
    at = x_ptr + top.to(tl.int64) * stride + left + ((line * L.rows + R) * stride + column)
    if L.mask:
        raw = tl.load(at, mask=(top + line * L.rows + R < rows) & (left + column < cols), other=0)
    else:
        raw = tl.load(at)
    source: tl.constexpr = L.source
    return wide(raw, source)


@triton.jit
def rows_of(ptr, top, rows, R: tl.constexpr, L: tl.constexpr):
    """Return numbers of the R-th rows, [lines, 1]."""
    row = top + tl.arange(0, L.lines)[:, None] * L.rows + R
    return tl.load(ptr + row, mask=row < rows, other=0)


@triton.jit
def produced(x_ptr, y_ptr, z_ptr, line_ptr, column_ptr, strides, top, left, rows, cols, P: tl.constexpr,
             L: tl.constexpr):  # fmt: skip
    """Return the values of the block: for each result of the producer, `Block.rows` tensors [lines, width]."""
    first, second = (), ()
    source: tl.constexpr = "float32" if _IN_PTX and L.packed else L.source  # rounded when packed: see `held`
    weight = 1.0
    if P.kind == "stacked":  # a block lies in one of both
        if top >= rows // 2:
            x_ptr, top, stride = y_ptr, top - rows // 2, strides[1]
        else:
            stride = strides[0]
        rows = rows // 2
    else:
        stride = strides[0]
    if P.kind == "norm":
        column = left + tl.arange(0, L.width)[None, :]
        weight = tl.load(column_ptr + column, mask=column < cols, other=0).to(tl.float32)
    for r in tl.static_range(L.rows + 0):
        x = loaded(x_ptr, stride, top, left, rows, cols, r, L)
        y, z, line = x, x, 1.0
        if P.inputs > 1 and P.kind != "stacked":
            y = loaded(y_ptr, strides[1], top, left, rows, cols, r, L)
        if P.inputs > 2:
            z = loaded(z_ptr, strides[2], top, left, rows, cols, r, L)
        if P.lines:
            line = rows_of(line_ptr, top, rows, r, L)
        results = made(x, y, z, line, weight, P, source)
        if L.mask and P.kind != "plain" and P.kind != "stacked":  # -0 is another code than the zeros that pad a tensor
            row = top + tl.arange(0, L.lines)[:, None] * L.rows + r
            inside = (row < rows) & (left + tl.arange(0, L.width)[None, :] < cols)
            kept = ()
            for i in tl.static_range(P.parts + 0):
                kept = kept + (tl.where(inside, results[i], 0.0),)
            results = kept
        first = first + (results[0],)
        if P.parts == 2:
            second = second + (results[1],)
    return first, second


@triton.jit
def narrowed(kept, outs, given, spot, sizes, counter, turned_counter, A: tl.constexpr, B: tl.constexpr,
             L: tl.constexpr):  # fmt: skip
    """Write codes and scales of both orientations; B None: the same codes turned.

    Args:
        kept: what is `held` of the values.
        outs: pointers to codes, scales, codes and scales of the transpose.
        given: maxima for either side: a number for a tensor, else a pointer.
        spot: top, left; start, the column of the outputs where this result's columns begin, plus ``left``.
        sizes: rows, cols; of the codes, and the row's length; of the transpose, and its count of rows.
        counter, turned_counter: of random bits.
    """
    codes_ptr, scales_ptr, turned_ptr, turned_scales_ptr = outs
    top, left, start = spot
    rows, cols, padded_rows, padded_cols, total, turned_rows, turned_cols, turned_total = sizes
    intos, poisons, nothing = kept, kept, kept
    if A.tile == "tensor":
        intos, poisons = of_tensor(given[0], scales_ptr, A, L)
    elif A.tile == "square":
        found = magnitudes(kept, L)
        intos, poisons = of_squares(found, scales_ptr, top, left, start, padded_rows, padded_cols, A, L)
    elif A.tile != "one":
        found = magnitudes(kept, L)
        intos, poisons = of_lines(found, given[0], scales_ptr, top, left, start, rows, padded_rows, padded_cols, A, L)
    ys = scaled(taken(kept, L), intos, A, L)
    codes = nothing
    if not _IN_PTX or A.hardware == "":
        for r in tl.static_range(L.rows + 0):
            draw = 0
            if A.R.random:
                draw = row_draws(top, start, total, counter, r, L)
            code = encoded(ys[r], poisons[r], draw, A)
            codes = (code,) if r == 0 else codes + (code,)
        stored = bytes_in(codes, L)
    else:
        stored = ()
        for r in tl.static_range(L.rows + 0):
            stored = stored + (four_columns(ys[r], A),)
    for r in tl.static_range(L.rows + 0):
        store_codes(codes_ptr, stored[r], top, left, start, total, padded_rows, padded_cols, r, L)
    if B is not None:
        tl.static_assert(B.tile != "square")
        if B.tile == "tensor":
            intos, poisons = of_tensor(given[1], turned_scales_ptr, B, L)
        elif B.tile != "one":
            found = magnitudes(kept, L)
            intos, poisons = of_columns(found, given[1], turned_scales_ptr, top, left, start, cols, turned_rows,
                                        turned_cols, turned_total, B, L)  # fmt: skip
        ys = scaled(taken(kept, L), intos, B, L)
        if not _IN_PTX or B.hardware == "" or L.ragged:
            draws = nothing
            if B.R.random:
                draws = column_draws(top, start, turned_cols, turned_counter, L)
            codes = codes_of(ys, poisons, draws, B, L)
            stored = bytes_in(codes, L)
        words = words_of(ys, codes, B, L)
    else:
        words = words_of(ys, codes, A, L)
    store_turned(turned_ptr, words, stored, top, left, start, turned_rows, turned_cols, L)


@triton.jit
def past_of(history_ptr, length, SIZE: tl.constexpr):
    """Return the largest finished maximum of a history, as bits."""
    slot = tl.arange(0, SIZE)
    return tl.max(tl.load(history_ptr + slot, mask=(slot > 0) & (slot < length), other=0), axis=0)


@triton.jit(
    do_not_specialize=("rows", "padded_rows", "height", "across", "length", "k0", "k1", "tensor", "step", "t0", "t1",
                       "turned_tensor", "turned_step")
)  # fmt: skip
def both_kernel(
    x_ptr, y_ptr, z_ptr, line_ptr, column_ptr, codes_ptr, scales_ptr, turned_ptr, turned_scales_ptr, amax_ptr,
    turned_amax_ptr, history_ptr, current_ptr, step_ptr, turned_step_ptr, x_stride, y_stride, z_stride,
    rows, cols, padded_rows, padded_cols, turned_rows, turned_cols, height, across, length,
    k0, k1, tensor, step, t0, t1, turned_tensor, turned_step,
    P: tl.constexpr, A: tl.constexpr, B: tl.constexpr, L: tl.constexpr, HISTORY: tl.constexpr,
):  # fmt: skip
    """Quantize one block in both orientations. P `Producer`, A and B `Side`, L `Block`, HISTORY: slots, padded."""
    row, column = place(height, across, L)
    top, left = row * L.height, column * L.width
    go = True
    amax, turned_amax = amax_ptr, turned_amax_ptr
    if L.delayed != "":
        amax = past_of(history_ptr, length, HISTORY)
        if L.delayed == "again":
            past, amax = amax, tl.load(current_ptr)
            go = (past == 0) | (amax >= _INF)
            if (tl.program_id(0) == 0) & (amax < _INF):
                tl.store(history_ptr, tl.maximum(tl.load(history_ptr), amax))
    elif A.tile == "tensor":
        amax = tl.load(amax_ptr)
    if B is not None:
        if B.tile == "tensor":
            turned_amax = tl.load(turned_amax_ptr)
    if A.R.random:
        if step_ptr is not None:
            step = tl.load(step_ptr)
    if B is not None:
        if B.R.random:
            if turned_step_ptr is not None:
                turned_step = tl.load(turned_step_ptr)
    if go:
        strides = (x_stride, y_stride, z_stride)
        first, second = produced(x_ptr, y_ptr, z_ptr, line_ptr, column_ptr, strides, top, left, rows, cols, P, L)
        first = held(first, L)
        if P.parts == 2:
            second = held(second, L)
        if L.delayed == "first":
            top_bits = top_of_rows(magnitudes(first, L), L)
            if P.parts == 2:
                top_bits = tl.maximum(top_bits, top_of_rows(magnitudes(second, L), L))
            tl.atomic_max(current_ptr, tl.max(tl.max(top_bits, axis=1), axis=0), sem="relaxed")
        outs = (codes_ptr, scales_ptr, turned_ptr, turned_scales_ptr)
        sizes = (rows, cols, padded_rows, padded_cols, padded_cols * P.parts, turned_rows, turned_cols,
                 turned_rows * P.parts)  # fmt: skip
        counter, turned_counter = (tensor, step, k0, k1), (turned_tensor, turned_step, t0, t1)
        given = (amax, turned_amax)
        narrowed(first, outs, given, (top, left, left), sizes, counter, turned_counter, A, B, L)
        if P.parts == 2:
            spot = (top, left, left + cols)
            narrowed(second, outs, given, spot, sizes, counter, turned_counter, A, B, L)


@triton.jit(do_not_specialize=("rows", "height", "across"))
def maxima_kernel(
    x_ptr, y_ptr, z_ptr, line_ptr, column_ptr, lines_ptr, columns_ptr, x_stride, y_stride, z_stride, rows, cols, height,
    across, WHOLE: tl.constexpr, P: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    """Join the largest magnitudes of one block: of all (WHOLE) into ``lines_ptr``, or of its rows and its columns."""
    row, column = place(height, across, L)
    top, left = row * L.height, column * L.width
    strides = (x_stride, y_stride, z_stride)
    first, second = produced(x_ptr, y_ptr, z_ptr, line_ptr, column_ptr, strides, top, left, rows, cols, P, L)
    maxima_of(first, lines_ptr, columns_ptr, top, left, left, rows, cols, WHOLE, L)
    if P.parts == 2:
        maxima_of(second, lines_ptr, columns_ptr, top, left, left + cols, rows, cols, WHOLE, L)


@triton.jit
def maxima_of(values, lines_ptr, columns_ptr, top, left, start, rows, cols, WHOLE: tl.constexpr, L: tl.constexpr):
    """Join the largest magnitudes of ``values``."""
    found = magnitudes(held(values, L), L)
    over = top_of_rows(found, L)
    if WHOLE:
        tl.atomic_max(lines_ptr, tl.max(tl.max(over, axis=1), axis=0), sem="relaxed")
    else:
        width: tl.constexpr = L.width
        tops = tops_of_rows(found, width, L)
        row = top + tl.arange(0, L.height)
        all_rows = tl.reshape(joined(tops, L.rows + 0), [L.height])
        tl.atomic_max(lines_ptr + row, all_rows, mask=row < rows, sem="relaxed")
        column = tl.arange(0, L.width)
        tl.atomic_max(columns_ptr + start + column, tl.max(over, axis=0), mask=left + column < cols, sem="relaxed")

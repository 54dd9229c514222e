"""Device code: maxima of tiles in both orientations and what scales come of them, for `kernels.both`.

Values come as `Block.rows` tensors [lines, width]: the r-th holds the r-th row of every thread's run of rows.
"""

import triton
import triton.language as tl

from narrowcast.kernels.quick import quick_quotient, quick_reciprocal
from narrowcast.kernels.rounding import bits_of, float_of
from narrowcast.kernels.scale import scale_of

_IN_PTX = tl.constexpr(not triton.knobs.runtime.interpret)
_INF = tl.constexpr(0x7F800000)
_SMALLEST = tl.constexpr(2.0**-126)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)
_NAN = tl.constexpr(0x7FC00000)


@triton.jit
def held(values, L: tl.constexpr):
    """Return ``values`` as a program keeps them while maxima are found: if L.packed, two bfloat16 rows to an int32."""
    if _IN_PTX and L.packed:
        kept = ()
        for q in tl.static_range(L.rows // 2):
            pair = tl.inline_asm_elementwise(
                "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [values[2 * q], values[2 * q + 1]], tl.int32, True, 1
            )
            kept = kept + (pair,)
    else:
        kept = values
    return kept


@triton.jit
def taken(kept, L: tl.constexpr):
    """Return the float32 values of what is `held`, unpacked anew: half the registers meanwhile."""
    if _IN_PTX and L.packed:
        values = ()
        for q in tl.static_range(L.rows // 2):
            pair = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [kept[q]], tl.int32, True, 1)
            values = values + (float_of(pair << 16), float_of(pair & -65536))
    else:
        values = kept
    return values


@triton.jit
def magnitudes(kept, L: tl.constexpr):
    """Return bits without their signs, of what is `held`: ordered as integers are, NaN above all."""
    found = ()
    count: tl.constexpr = len(kept)
    for r in tl.static_range(count):
        if _IN_PTX and L.packed:
            found = found + (kept[r] & 0x7FFF7FFF,)
        else:
            found = found + (bits_of(kept[r]) & _MAGNITUDE,)
    return found


@triton.jit
def larger_halves(a, b):
    """Return the larger of either half of two int32, unsigned."""
    return tl.inline_asm_elementwise("max.u16x2 $0, $1, $2;", "=r,r,r", [a, b], tl.int32, True, 1)


@triton.jit
def top_of_rows(found, L: tl.constexpr):
    """Return float32 bits of the largest over each thread's rows, [lines, width]."""
    top = found[0]
    count: tl.constexpr = len(found)
    for r in tl.static_range(1, count):
        if _IN_PTX and L.packed:
            top = larger_halves(top, found[r])
        else:
            top = tl.maximum(top, found[r])
    if _IN_PTX and L.packed:
        top = tl.maximum(top << 16, top & -65536)
    return top


@triton.jit
def over_columns(x, RUN: tl.constexpr, L: tl.constexpr):
    """Return the largest of each RUN columns of ``x`` [lines, width]."""
    if L.width == RUN:
        top = tl.max(x, axis=1, keep_dims=True)
    else:
        top = tl.max(tl.reshape(x, [x.shape[0], L.width // RUN, RUN]), axis=2)
    return top


@triton.jit
def halves_over_columns(x, RUN: tl.constexpr, L: tl.constexpr):
    """Return `over_columns` of either half, as float32 bits."""
    if L.width == RUN:
        top = tl.reduce(x, 1, larger_halves, keep_dims=True)
    else:
        top = tl.reduce(tl.reshape(x, [x.shape[0], L.width // RUN, RUN]), 2, larger_halves)
    return top << 16, top & -65536


@triton.jit
def tops_of_rows(found, RUN: tl.constexpr, L: tl.constexpr):
    """Return the largest of each RUN columns for each of a thread's rows, [lines, runs] float32 bits."""
    tops = ()
    count: tl.constexpr = len(found)
    for r in tl.static_range(count):
        if _IN_PTX and L.packed:
            low, high = halves_over_columns(found[r], RUN, L)
            tops = tops + (low, high)
        else:
            tops = tops + (over_columns(found[r], RUN, L),)
    return tops


@triton.jit
def over_lines(x, RUN: tl.constexpr, L: tl.constexpr):
    """Return the largest of each RUN rows, ``x`` [lines, columns] being that of each thread's."""
    if L.height == RUN:
        top = tl.max(x, axis=0, keep_dims=True)
    else:
        top = tl.max(tl.reshape(x, [L.height // RUN, RUN // L.rows, x.shape[1]]), axis=1)
    return top


@triton.jit
def along_columns(x, L: tl.constexpr):
    """Spread ``x`` [lines, runs] over the columns of each run."""
    if x.shape[1] > 1:
        lines: tl.constexpr = x.shape[0]
        runs: tl.constexpr = x.shape[1]
        x = tl.reshape(tl.broadcast_to(x[:, :, None], [lines, runs, L.width // runs]), [lines, L.width])
    return x


@triton.jit
def along_lines(x, L: tl.constexpr):
    """Spread ``x`` [runs, columns] over the lines of each run."""
    if x.shape[0] > 1:
        runs: tl.constexpr = x.shape[0]
        cols: tl.constexpr = x.shape[1]
        x = tl.reshape(tl.broadcast_to(x[:, None, :], [runs, L.lines // runs, cols]), [L.lines, cols])
    return x


@triton.jit
def joined(parts, COUNT: tl.constexpr):
    """Return COUNT tensors [N, C] as one [N, C, COUNT]; COUNT is 1, 2, 4 or 8."""
    if COUNT == 1:
        x = parts[0][:, :, None]
    elif COUNT == 2:
        x = tl.join(parts[0], parts[1])
    elif COUNT == 4:
        x = tl.join(tl.join(parts[0], parts[2]), tl.join(parts[1], parts[3]))
        x = tl.reshape(x, [parts[0].shape[0], parts[0].shape[1], 4])
    else:
        a = tl.join(tl.join(parts[0], parts[4]), tl.join(parts[2], parts[6]))
        b = tl.join(tl.join(parts[1], parts[5]), tl.join(parts[3], parts[7]))
        x = tl.reshape(tl.join(a, b), [parts[0].shape[0], parts[0].shape[1], 8])
    return x


@triton.jit
def wide_scale(amax, A: tl.constexpr):
    """Return `scale_of` for a float32 scale, in a third of the instructions."""
    poisoned = amax >= _INF
    divisor: tl.constexpr = A.S.divisor
    inverse: tl.constexpr = A.S.inverse
    exact = tl.maximum(quick_quotient(float_of(amax), divisor, inverse), _SMALLEST)
    exact = tl.where(amax == 0, 1.0, exact)
    return float_of(tl.where(poisoned, _NAN, bits_of(exact))), quick_reciprocal(exact), poisoned


@triton.jit
def scale_and_factor(amax, A: tl.constexpr):
    """Return (what is stored, factor into the format, poisoned), NaN the factor of what is poisoned."""
    if _IN_PTX and A.quick:
        stored, into, poisoned = wide_scale(amax, A)
    else:
        rule: tl.constexpr = A.S
        scale_format: tl.constexpr = A.F
        stored, into, poisoned = scale_of(amax, 0, rule, scale_format)
    return stored, float_of(tl.where(poisoned, _NAN, bits_of(into))), poisoned


@triton.jit
def factor(amax, scales_ptr, at, mask, A: tl.constexpr):
    """Store the scales of ``amax``; return (factor into the format, poisoned)."""
    stored, into, poisoned = scale_and_factor(amax, A)
    kind: tl.constexpr = scales_ptr.dtype.element_ty
    tl.store(scales_ptr + at, stored.to(kind), mask=mask)
    return into, poisoned


@triton.jit
def of_tensor(amax, scales_ptr, A: tl.constexpr, L: tl.constexpr):
    """Return `factor` of the whole tensor, for each of a thread's rows."""
    into, poisoned = factor(amax, scales_ptr, 0, tl.program_id(0) == 0, A)
    intos, poisons = (), ()
    for _ in tl.static_range(L.rows + 0):
        intos, poisons = intos + (into,), poisons + (poisoned,)
    return intos, poisons


@triton.jit
def of_lines(found, amax_ptr, scales_ptr, top, left, start, rows, padded_rows, padded_cols, A: tl.constexpr,
             L: tl.constexpr):  # fmt: skip
    """Return `factor` of rows, or of runs along them, for each of a thread's rows. ``start``: `left` in the codes."""
    intos, poisons, scales = (), (), ()
    tops = found
    if A.tile == "run":
        run_length: tl.constexpr = A.run
        tops = tops_of_rows(found, run_length, L)
    for r in tl.static_range(L.rows + 0):
        if A.tile == "line":
            row = top + tl.arange(0, L.lines)[:, None] * L.rows + r
            amax = tl.load(amax_ptr + row, mask=row < rows, other=0)
        else:
            amax = tops[r]
        stored, into, poisoned = scale_and_factor(amax, A)
        scales = scales + (stored,)
        intos = intos + (along_columns(into, L),)
        poisons = poisons + (along_columns(poisoned, L),)
    kind: tl.constexpr = scales_ptr.dtype.element_ty
    height: tl.constexpr = L.height
    runs: tl.constexpr = scales[0].shape[1]
    all_rows = tl.reshape(tl.permute(joined(scales, L.rows + 0), [1, 0, 2]), [runs, height])
    run, row = tl.arange(0, runs)[:, None], top + tl.arange(0, height)[None, :]
    at, inside = row, (row < padded_rows) & (start == 0)
    if A.tile != "line":
        at = (start // A.run + run).to(tl.int64) * padded_rows + row
        inside = (row < padded_rows) & (left + run * A.run < padded_cols)
    tl.store(scales_ptr + at, all_rows.to(kind), mask=inside)
    return intos, poisons


@triton.jit
def of_columns(found, amax_ptr, scales_ptr, top, left, start, cols, padded_rows, padded_cols, total, B: tl.constexpr,
               L: tl.constexpr):  # fmt: skip
    """Return `factor` of columns, or of runs down them, for each of a thread's rows.

    ``padded_rows``: of the transpose, so columns here, ``total`` of them where several results lie side by side.
    """
    column = tl.arange(0, L.width)[None, :]
    inside = left + column < padded_rows
    if B.tile == "line":
        amax = tl.load(amax_ptr + start + column, mask=left + column < cols, other=0)
        into, poisoned = factor(amax, scales_ptr, start + column, inside & (top == 0), B)
    else:
        run = tl.arange(0, L.height // B.run)[:, None]
        amax = over_lines(top_of_rows(found, L), B.run, L)
        at = (top // B.run + run).to(tl.int64) * total + (start + column)
        into, poisoned = factor(amax, scales_ptr, at, inside & (top + run * B.run < padded_cols), B)
    into, poisoned = along_lines(into, L), along_lines(poisoned, L)
    intos, poisons = (), ()
    for _ in tl.static_range(L.rows + 0):
        intos, poisons = intos + (into,), poisons + (poisoned,)
    return intos, poisons


@triton.jit
def of_squares(found, scales_ptr, top, left, start, padded_rows, padded_cols, A: tl.constexpr, L: tl.constexpr):
    """Return `factor` of squares, for each of a thread's rows."""
    amax = over_columns(over_lines(top_of_rows(found, L), A.run, L), A.run, L)
    down, run = tl.arange(0, L.height // A.run)[:, None], tl.arange(0, L.width // A.run)[None, :]
    inside = (top + down * A.run < padded_rows) & (left + run * A.run < padded_cols)
    at = (start // A.run + run).to(tl.int64) * (padded_rows // A.run) + (top // A.run + down)
    into, poisoned = factor(amax, scales_ptr, at, inside, A)
    into, poisoned = along_columns(along_lines(into, L), L), along_columns(along_lines(poisoned, L), L)
    intos, poisons = (), ()
    for _ in tl.static_range(L.rows + 0):
        intos, poisons = intos + (into,), poisons + (poisoned,)
    return intos, poisons


@triton.jit
def scaled(values, intos, A: tl.constexpr, L: tl.constexpr):
    """Return the values as the format is to see them."""
    ys = ()
    for r in tl.static_range(L.rows + 0):
        if A.tile == "one":
            ys = ys + (values[r],)
        else:
            ys = ys + (values[r] * intos[r],)
    return ys

"""Device code: the layout of one program. A thread owns whole *groups* of consecutive elements.

A group of G elements is a tuple of G tensors, one number per thread in each, so that Hadamard butterflies, maxima of
short tiles and the packing of codes stay inside a thread, without shuffles. A program holds N = T * R2 * S2 groups: T
tiles of R rows and S groups a row (R2 and S2 are the next powers of two). Shorter tiles lie Q to a group.
"""

import triton
import triton.language as tl

from narrowcast.kernels.rounding import bits_of

_IN_PTX = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def place(rows, cols, padded_rows, padded_cols, tiles_per_row, row_bytes, BITS: tl.constexpr, L: tl.constexpr):
    """Return where each group [N] of this program lies.

    (first element of the source, as a base and offsets; elements that exist from there on; index in the padded matrix;
    byte of its codes, as a base and offsets; index of its first tile; first group of its tile; inside the matrix)
    """
    n = tl.arange(0, L.groups)
    if L.flat:
        first = tl.program_id(0).to(tl.int64) * L.groups
        base, code_base = first * L.group, first * (L.group * BITS // 8)
        at, code_at = n * L.group, n * (L.group * BITS // 8)
        total = tl.minimum(rows.to(tl.int64) * cols // L.group - first, L.groups).to(tl.int32)
        left = total * L.group - at
        element = base + at
        tile = (first + n) // L.padded_runs * L.per_group
        inside, leader = left > 0, n % L.padded_runs == 0
    else:
        row, run = n // (L.tiles * L.padded_runs), n % L.padded_runs
        across = tl.program_id(1) * L.tiles + n // L.padded_runs % L.tiles
        column = across * L.runs + run
        top = tl.program_id(0).to(tl.int64) * L.rows
        base, code_base = top * cols, top * row_bytes
        at, code_at = row * cols + column * L.group, row * row_bytes + column * (L.group * BITS // 8)
        inside = (row < L.rows) & (run < L.runs) & (column * L.group < padded_cols)
        left = tl.where(inside & (top + row < rows), cols - column * L.group, 0)
        element = (top + row) * padded_cols + column * L.group
        tile = tl.program_id(0).to(tl.int64) * tiles_per_row + across * L.per_group
        leader = (row == 0) & (run == 0)
    return base, at, left, element, code_base, code_at, tile, leader, inside


@triton.jit
def columns(x):
    """Return the columns of ``x`` [N, C], C 4 or 8, as C tensors [N]; a thread holds a row, so nothing moves."""
    if x.shape[1] == 8:
        a, b = tl.split(tl.reshape(x, [x.shape[0], 2, 2, 2]))
        a0, a1 = tl.split(a)
        b0, b1 = tl.split(b)
        x0, x4 = tl.split(a0)
        x2, x6 = tl.split(a1)
        x1, x5 = tl.split(b0)
        x3, x7 = tl.split(b1)
        found = (x0, x1, x2, x3, x4, x5, x6, x7)
    else:
        a, b = tl.split(tl.reshape(x, [x.shape[0], 2, 2]))
        x0, x2 = tl.split(a)
        x1, x3 = tl.split(b)
        found = (x0, x1, x2, x3)
    return found


@triton.jit
def load_group(x_ptr, flips_ptr, at, left, element, H: tl.constexpr, L: tl.constexpr, LOADS: tl.constexpr):
    """Return the elements of each group from ``at`` [N] on, of which ``left`` [N] exist, as LOADS tensors of int32.

    16 bytes a load, L.items items [N, 4 or 8]: float32 bits, or two 16-bit elements where L.pairs, or else one (int16).
    What does not exist is 0. Where the transform has signs, ``flips_ptr`` holds the sign bits to be flipped, by
    ``element`` [N], the index in the padded matrix.
    """
    raw = ()
    lane = tl.arange(0, L.items)[None, :]
    for j in tl.static_range(LOADS):
        index = (at // L.per_item)[:, None] + (lane + j * L.items)
        if L.mask:
            x = tl.load(x_ptr + index, mask=(lane + j * L.items) * L.per_item < left[:, None], other=0)
        else:
            x = tl.load(x_ptr + index)
        if H.signs != "none":
            start = (element % H.size).to(tl.int32)[:, None] if H.size > L.group else (at * 0)[:, None]
            x = x ^ tl.load(flips_ptr + (start // L.per_item + lane + (j * L.items) % (H.size // L.per_item)))
        raw = raw + (x,)
    return raw


@triton.jit
def again(raw, L: tl.constexpr, LOADS: tl.constexpr):
    """Return ``raw`` so that the compiler unpacks it anew, instead of keeping twice the registers over a reduction."""
    if _IN_PTX and L.pairs:
        kept = ()
        for j in tl.static_range(LOADS):
            kept = kept + (tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [raw[j]], tl.int32, True, 1),)
        raw = kept
    return raw


@triton.jit
def unpacked(raw, L: tl.constexpr, LOADS: tl.constexpr, ITEMS: tl.constexpr):
    """Return what `load_group` loaded as one float32 tensor [N] for each element."""
    values = ()
    for j in tl.static_range(LOADS):
        items = columns(raw[j])
        for i in tl.static_range(ITEMS):
            x = items[i]
            if L.source == "float32":
                values = values + (x.to(tl.float32, bitcast=True),)
            elif L.source == "bfloat16":
                if L.pairs:
                    values = values + ((x << 16).to(tl.float32, bitcast=True),)
                    values = values + ((x & -65536).to(tl.float32, bitcast=True),)
                else:
                    values = values + ((x.to(tl.int32) << 16).to(tl.float32, bitcast=True),)
            else:
                values = values + (x.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32),)
                if L.pairs:
                    values = values + ((x >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32),)
    return values


@triton.jit
def values_of(raw, H: tl.constexpr, L: tl.constexpr, FACTOR: tl.constexpr):
    """Return the float32 elements of each group, rotated, from what `load_group` loaded."""
    values = unpacked(raw, L, L.group // L.vector, L.items + 0)
    if H.size > 1:
        values = rotate(values, H, H.levels, L.group, FACTOR)
    return values


@triton.jit
def rotate(values, H: tl.constexpr, LEVELS: tl.constexpr, SIZE: tl.constexpr, FACTOR: tl.constexpr):
    """Return the SIZE ``values`` of each group after the transform H (`RotationFacts`), its signs already applied.

    FACTOR: whether to multiply by the transform's factor here.
    """
    for level in tl.static_range(LEVELS):
        if (1 << level) < SIZE:
            values = butterflies(values, 1 << level, SIZE)
        else:
            values = butterflies_across(values, (1 << level) // SIZE, H.size // SIZE, SIZE)
    if FACTOR:
        scaled = ()
        for i in tl.static_range(SIZE):
            scaled = scaled + (values[i] * H.factor,)
        values = scaled
    return values


@triton.jit
def butterflies(values, HALF: tl.constexpr, SIZE: tl.constexpr):
    """Return sums and differences of ``values`` that lie HALF apart."""
    mixed = ()
    for i in tl.static_range(SIZE):
        if i & HALF == 0:
            mixed = mixed + (values[i] + values[i + HALF],)
        else:
            mixed = mixed + (values[i - HALF] - values[i],)
    return mixed


@triton.jit
def butterflies_across(values, HALF: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr):
    """Return sums and differences of ``values`` of groups that lie HALF apart, in runs of WIDTH groups.

    ``fma(own, sign, partner)`` is a sum or a difference of two numbers, rounded once: the product is exact.
    """
    count: tl.constexpr = values[0].shape[0]
    lane = tl.broadcast_to(tl.arange(0, WIDTH)[None, :], [count // WIDTH, WIDTH])
    sign = tl.reshape(tl.where((lane & HALF) == 0, 1.0, -1.0), [count])
    mixed = ()
    for i in tl.static_range(SIZE):
        partner = tl.gather(tl.reshape(values[i], [count // WIDTH, WIDTH]), lane ^ HALF, 1)
        mixed = mixed + (tl.fma(values[i], sign, tl.reshape(partner, [count])),)
    return mixed


@triton.jit
def largest(values, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """Return the bits (int32) of the largest magnitude of ``values[FIRST : FIRST + COUNT]``; NaN wins."""
    top = tl.abs(values[FIRST])
    for i in tl.static_range(1, COUNT):
        top = tl.maximum(top, tl.abs(values[FIRST + i]), propagate_nan=tl.PropagateNan.ALL)
    return bits_of(tl.abs(top))


@triton.jit
def over_tile(amax, L: tl.constexpr):
    """Return the largest of ``amax`` [N] (int32) within each tile of several groups, for every group of it."""
    if L.padded_runs > 1:
        runs = tl.reshape(amax, [L.groups // L.padded_runs, L.padded_runs])
        top = tl.max(runs, axis=1)[:, None]
        amax = tl.reshape(tl.broadcast_to(top, [L.groups // L.padded_runs, L.padded_runs]), [L.groups])
    if L.padded_rows > 1:
        rows = tl.reshape(amax, [L.padded_rows, L.groups // L.padded_rows])
        top = tl.max(rows, axis=0)[None, :]
        amax = tl.reshape(tl.broadcast_to(top, [L.padded_rows, L.groups // L.padded_rows]), [L.groups])
    return amax


@triton.jit
def store_words(ptr, words, inside, COUNT: tl.constexpr, L: tl.constexpr):
    """Store COUNT words of each group side by side, ``ptr`` [N] at the first; as many at a time as are aligned."""
    if COUNT % 4 == 0:
        for q in tl.static_range(COUNT // 4):
            even = tl.join(words[4 * q], words[4 * q + 2])
            odd = tl.join(words[4 * q + 1], words[4 * q + 3])
            store_row(ptr + 4 * q, tl.reshape(tl.join(even, odd), [L.groups, 4]), inside, 4, L)
    elif COUNT % 2 == 0:
        for q in tl.static_range(COUNT // 2):
            store_row(ptr + 2 * q, tl.join(words[2 * q], words[2 * q + 1]), inside, 2, L)
    else:
        for q in tl.static_range(COUNT):
            store_row(ptr + q, tl.reshape(words[q], [L.groups, 1]), inside, 1, L)


@triton.jit
def store_row(ptr, values, inside, COUNT: tl.constexpr, L: tl.constexpr):
    """Store ``values`` [N, COUNT] from ``ptr`` [N] on, where ``inside`` [N]."""
    at = ptr[:, None] + tl.arange(0, COUNT)[None, :]
    if L.mask:
        tl.store(at, values, mask=inside[:, None])
    else:
        tl.store(at, values)


@triton.jit
def store_bytes(ptr, words, inside, left_bits, COUNT: tl.constexpr):
    """Store COUNT words byte by byte, for rows of codes that start anywhere; ``left_bits`` [N] of them exist."""
    for w in tl.static_range(COUNT):
        left = left_bits - 32 * w
        word = tl.where(left >= 32, words[w], words[w] & ((1 << tl.maximum(tl.minimum(left, 31), 0)) - 1))
        for k in tl.static_range(4):
            tl.store(ptr + (4 * w + k), (word >> (8 * k)).to(tl.uint8), mask=inside & (left > 8 * k))

"""Device code: bits, Philox 4x32-10 as in `formats.philox`, and rounding as in `formats.rounding`."""

import triton
import triton.language as tl


@triton.jit
def bits_of(x):
    """Return the bits of float32 as int32."""
    return x.to(tl.int32, bitcast=True)


@triton.jit
def float_of(bits):
    """Return int32 bits as float32."""
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Return the four uint32 words of counter (c0..c3) under key (k0, k1), all uint32."""
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53  # 32 x 32 -> 64 bits: one wide multiplication
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p1.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 = (k0 + 0x9E3779B9).to(tl.uint32)
        k1 = (k1 + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def eight_draws(block, tensor, step, k0, k1):
    """Return the eight 16-bit draws (int32) of counter ``block`` (int64), in the order of `Stream.bits`.

    The other arguments are scalars: identity of the tensor, step, and the two halves of the seed.
    """
    low, high = block.to(tl.uint32), (block >> 32).to(tl.uint32)
    nothing = tl.zeros_like(low)
    w0, w1, w2, w3 = philox(
        low, high, nothing + tensor.to(tl.uint32), nothing + step.to(tl.uint32), k0.to(tl.uint32), k1.to(tl.uint32)
    )
    return (
        (w0 & 0xFFFF).to(tl.int32),
        (w0 >> 16).to(tl.int32),
        (w1 & 0xFFFF).to(tl.int32),
        (w1 >> 16).to(tl.int32),
        (w2 & 0xFFFF).to(tl.int32),
        (w2 >> 16).to(tl.int32),
        (w3 & 0xFFFF).to(tl.int32),
        (w3 >> 16).to(tl.int32),
    )


@triton.jit
def one_draw(element, tensor, step, k0, k1):
    """Return the draw of each ``element`` (int64): for rows that do not start on a counter of their own."""
    draws = eight_draws(element >> 3, tensor, step, k0, k1)
    lane = (element & 7).to(tl.int32)
    draw = draws[0]
    for i in tl.static_range(1, 8):
        draw = tl.where(lane == i, draws[i], draw)
    return draw


@triton.jit
def round_fixed(n, SHIFT: tl.constexpr, sign, draw, R: tl.constexpr):
    """Round ``n / 2**SHIFT`` to an integer under R (`RoundingFacts`); `formats.rounding` says what each mode means.

    n int32, not negative; sign int32, 0 or -1; draw int32 of 16 bits.
    """
    mask: tl.constexpr = (1 << SHIFT) - 1
    half: tl.constexpr = (1 << SHIFT) >> 1
    if SHIFT == 0:
        code = n
    elif R.mode == "nearest-even":
        code = (((n >> SHIFT) & 1) + n + (half - 1)) >> SHIFT
    elif R.mode == "nearest-away":
        code = (n + half) >> SHIFT
    elif R.mode == "nearest-zero":
        code = (n + (half - 1)) >> SHIFT
    elif R.mode == "nearest-up":
        code = (n + (half + sign)) >> SHIFT
    elif R.mode == "nearest-down":
        code = (n + (half - 1 - sign)) >> SHIFT
    elif R.mode == "toward-zero":
        code = n >> SHIFT
    elif R.mode == "up":
        code = (n + (~sign & mask)) >> SHIFT
    elif R.mode == "down":
        code = (n + (sign & mask)) >> SHIFT
    elif R.mode == "odd":
        code = (n >> SHIFT) | (((n & mask) + mask) >> SHIFT)
    elif R.mode == "stochastic-equal":
        code = (n + (draw >> 15) * mask) >> SHIFT
    elif R.mode == "stochastic-flush":
        flushed = dithered(n, SHIFT, draw, SHIFT - 1 if SHIFT < 16 else 15)
        near = (((n >> SHIFT) & 1) + n + (half - 1)) >> SHIFT
        code = tl.where(n < (1 << SHIFT), flushed, near)
    else:
        tl.static_assert(R.mode == "stochastic")
        code = dithered(n, SHIFT, draw, R.draw_bits)
    return code


@triton.jit
def dithered(n, SHIFT: tl.constexpr, draw, BITS: tl.constexpr):
    """Add the first BITS bits of a draw below the last kept bit, then truncate; BITS counts as 1 at least."""
    bits: tl.constexpr = BITS if BITS > 1 else 1
    few = draw >> (16 - bits)
    if bits <= SHIFT:
        code = (n + (few << (SHIFT - bits))) >> SHIFT
    else:
        code = (n + (few >> (bits - SHIFT))) >> SHIFT
    return code


@triton.jit
def leaves(sign, R: tl.constexpr):
    """Where a finite value beyond the maximum leaves the finite range, as `Rounding.leaves` says."""
    if R.overflow == "leaves":
        found = sign == sign
    elif R.overflow == "up":
        found = sign == 0
    elif R.overflow == "down":
        found = sign != 0
    else:
        found = sign != sign
    return found

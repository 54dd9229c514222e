"""Device code: codes side by side in words, a little-endian bit stream as in `formats.packing`."""

import triton
import triton.language as tl

from narrowcast.kernels.encode import chosen_bits
from narrowcast.kernels.rounding import bits_of

_IN_PTX = tl.constexpr(not triton.knobs.runtime.interpret)


@triton.jit
def packed(codes, BITS: tl.constexpr, G: tl.constexpr):
    """Return top-aligned ``codes`` of a group as words (int32)."""
    words = ()
    for w in tl.static_range(G * BITS // 32):
        words = words + (packed_word(codes, w * 32, w * 32 // BITS, (w * 32 + 31) // BITS, BITS),)
    return words


@triton.jit
def packed_word(codes, START: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr, BITS: tl.constexpr):
    """Return the 32 bits from START on of the stream of ``codes``, of which FIRST to LAST have bits there."""
    word = codes[LAST] * 0
    if BITS == 32:
        word = codes[LAST]
    elif 32 % BITS == 0:
        for i in tl.static_range(LAST - FIRST + 1):  # the last code first
            word = shifted_in(word, codes[LAST - i], BITS)
    else:
        for i in tl.static_range(LAST - FIRST + 1):
            code = codes[FIRST + i].to(tl.uint32, bitcast=True) >> (32 - BITS)
            if (FIRST + i) * BITS >= START:
                code = code << ((FIRST + i) * BITS - START)
            else:
                code = code >> (START - (FIRST + i) * BITS)
            word = word | code.to(tl.int32, bitcast=True)
    return word


@triton.jit
def shifted_in(word, code, BITS: tl.constexpr):
    """Return ``word`` moved up by BITS, with the leading BITS of ``code`` below."""
    if _IN_PTX:  # one funnel shift, which the compiler takes apart into masks and merges of 2.4 instructions a code
        both = tl.inline_asm_elementwise(
            f"shf.l.wrap.b32 $0, $1, $2, {BITS};", "=r,r,r", [code, word], tl.int32, True, 1
        )
    else:
        both = (word << BITS) | (code.to(tl.uint32, bitcast=True) >> (32 - BITS)).to(tl.int32, bitcast=True)
    return both


@triton.jit
def bytes_of(a, b, SELECTOR: tl.constexpr):
    """Return four bytes chosen from the eight of ``a`` (0 to 3) and ``b`` (4 to 7), the first digit last."""
    if _IN_PTX:
        found = tl.inline_asm_elementwise(f"prmt.b32 $0, $1, $2, {SELECTOR};", "=r,r,r", [a, b], tl.int32, True, 1)
    else:
        both = (b.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | a.to(tl.uint32, bitcast=True).to(tl.uint64)
        found = tl.zeros_like(a)
        for i in tl.static_range(4):
            byte = (both >> (8 * ((SELECTOR >> (4 * i)) & 7))) & 0xFF
            found = found | (byte.to(tl.uint32) << (8 * i)).to(tl.int32, bitcast=True)
    return found


@triton.jit
def pair(ys, codes, FIRST: tl.constexpr, STEP: tl.constexpr, E: tl.constexpr, W: tl.constexpr):
    """Return two codes with their signs, each at the top of a half: of elements FIRST and FIRST + STEP."""
    both = bytes_of(codes[FIRST], codes[FIRST + STEP], 0x7632)
    if W.kind == "dither":  # the sign came along; what exceeds the largest code is cut now, two at once
        signs = both
        if not W.bounded:
            both = smaller_halves(both & 0x7FFF7FFF, E.half_limit)
    else:
        signs = bytes_of(bits_of(ys[FIRST]), bits_of(ys[FIRST + STEP]), 0x7632)
    return chosen_bits(signs, both << (8 - E.exponent), 0x80008000)


@triton.jit
def smaller_halves(a, LIMIT: tl.constexpr):
    """Return the smaller of the unsigned halves of ``a`` and LIMIT."""
    if _IN_PTX:
        found = tl.inline_asm_elementwise(
            f"{{ .reg .b32 t; mov.b32 t, {LIMIT}; min.u16x2 $0, $1, t; }}", "=r,r", [a], tl.int32, True, 1
        )
    else:
        low = tl.minimum(a & 0xFFFF, LIMIT & 0xFFFF)
        found = low | (tl.minimum(a >> 16, LIMIT >> 16) << 16)
    return found


@triton.jit
def packed_halves(ys, codes, G: tl.constexpr, E: tl.constexpr, W: tl.constexpr):
    """Return the words of a group's codes in rebased float32s; ``ys`` have the signs. Formats of 4 and 8 bits."""
    words = ()
    if E.bits == 8:
        for w in tl.static_range(G // 4):
            low, high = pair(ys, codes, 4 * w, 1, E, W), pair(ys, codes, 4 * w + 2, 1, E, W)
            words = words + (bytes_of(low, high, 0x7531),)
    else:
        for w in tl.static_range(G // 8):
            even = bytes_of(pair(ys, codes, 8 * w, 2, E, W), pair(ys, codes, 8 * w + 4, 2, E, W), 0x7531)
            odd = bytes_of(pair(ys, codes, 8 * w + 1, 2, E, W), pair(ys, codes, 8 * w + 5, 2, E, W), 0x7531)
            words = words + (chosen_bits(odd, (even >> 4), 0xF0F0F0F0),)
    return words

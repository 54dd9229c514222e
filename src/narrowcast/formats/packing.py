"""Sub-byte codes in bytes: a little-endian bit stream along the last axis.

Element 0 takes the lowest bits of byte 0. For 4 bits that puts element 2i in the low nibble, as OCP MX, PyTorch's
``float4_e2m1fn_x2`` and TransformerEngine do (bitsandbytes puts it in the high one). Each row starts on a fresh byte.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats.views import split_axis

#: codes of whole bytes are packed by conversion: on little-endian machines their bytes lie as the stream's
_WHOLE = {8: torch.uint8, 16: torch.int16, 32: torch.int32}


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that a row of ``count`` codes of ``bits`` bits takes."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes ``[..., n]`` of ``bits`` bits (1 to 32) into ``uint8 [..., ceil(n * bits / 8)]``."""
    group, width = _group(bits)
    if bits in _WHOLE and codes.numel():
        return codes.to(_WHOLE[bits]).clone(memory_format=torch.contiguous_format).view(torch.uint8)
    count = codes.shape[-1]
    padded = split_axis(F.pad(codes.to(torch.int64), (0, -count % group)), -1, group)
    stream = padded.new_zeros((*padded.shape[:-1], width))
    for code, byte, shift in _overlaps(bits):
        stream[..., byte] |= _shifted(padded[..., code], shift)
    packed = (stream & 0xFF).to(torch.uint8).flatten(-2)
    return packed[..., : packed_size(count, bits)].contiguous()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the ``count`` codes per row that `pack` packed, as int32 ``[..., count]``."""
    group, width = _group(bits)
    found, expected = packed.shape[-1], packed_size(count, bits)
    if found != expected:
        raise InputError(f"packed row has {found} bytes, expected {expected} for {count} codes of {bits} bits")
    if bits in _WHOLE and packed.numel() and _aligned(packed, bits // 8):
        whole = packed.contiguous().view(_WHOLE[bits]).int()
        return whole & ((1 << bits) - 1) if bits < 32 else whole.clone()
    stream = split_axis(F.pad(packed.to(torch.int64), (0, -found % width)), -1, width)
    codes = stream.new_zeros((*stream.shape[:-1], group))
    for code, byte, shift in _overlaps(bits):
        codes[..., code] |= _shifted(stream[..., byte], -shift)
    return (codes & ((1 << bits) - 1)).flatten(-2)[..., :count].int().contiguous()


def _aligned(packed: Tensor, width: int) -> bool:
    """Return whether ``packed`` can be viewed as words of ``width`` bytes; the compiler cannot tell where it begins."""
    return width == 1 or (not torch.compiler.is_compiling() and packed.storage_offset() % width == 0)


def _group(bits: int) -> tuple[int, int]:
    """Return the fewest codes that end on a byte boundary together, and the bytes they fill."""
    if not 1 <= bits <= 32:
        raise InputError(f"cannot pack codes of {bits} bits: expected 1 to 32")
    group = 8 // math.gcd(bits, 8)
    return group, group * bits // 8


def _overlaps(bits: int) -> Iterator[tuple[int, int, int]]:
    """Yield (code, byte, left shift that brings the code's bits into the byte) for each pair that share bits."""
    for code in range(_group(bits)[0]):
        first, last = code * bits // 8, (code * bits + bits - 1) // 8
        for byte in range(first, last + 1):
            yield code, byte, code * bits - 8 * byte


def _shifted(x: Tensor, left: int) -> Tensor:
    return x << left if left >= 0 else x >> -left

"""Sub-byte codes in bytes: a little-endian bit stream along the last axis.

Element 0 takes the lowest bits of byte 0. For 4 bits that puts element 2i in the low nibble, as OCP MX, PyTorch's
``float4_e2m1fn_x2`` and TransformerEngine do (bitsandbytes puts it in the high one). Each row starts on a fresh byte.
"""

import torch
from torch import Tensor

from narrowcast.errors import InputError


def packed_size(count: int, bits: int) -> int:
    """Return the bytes that a row of ``count`` codes of ``bits`` bits takes."""
    return -(-count * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes ``[..., n]`` of ``bits`` bits (1 to 32) into ``uint8 [..., ceil(n * bits / 8)]``."""
    if not 1 <= bits <= 32:
        raise InputError(f"cannot pack codes of {bits} bits: expected 1 to 32")
    codes = codes.to(torch.int64)
    if bits % 8 == 0:
        shifts = torch.arange(0, bits, 8, device=codes.device)
        return ((codes[..., None] >> shifts) & 0xFF).to(torch.uint8).flatten(-2)
    group = 8 // _gcd8(bits)  # codes that end on a byte boundary together
    count = codes.shape[-1]
    padded = torch.nn.functional.pad(codes, (0, -count % group))
    grouped = padded.unflatten(-1, (-1, group))
    stream = (grouped << (torch.arange(group, device=codes.device) * bits)).sum(-1)
    shifts = torch.arange(0, group * bits, 8, device=codes.device)
    packed = ((stream[..., None] >> shifts) & 0xFF).to(torch.uint8).flatten(-2)
    return packed[..., : packed_size(count, bits)].contiguous()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the ``count`` codes per row that `pack` packed, as int32 ``[..., count]``."""
    if packed.shape[-1] != packed_size(count, bits):
        found, expected = packed.shape[-1], packed_size(count, bits)
        raise InputError(f"packed row has {found} bytes, expected {expected} for {count} codes of {bits} bits")
    group = 1 if bits % 8 == 0 else 8 // _gcd8(bits)
    width = group * bits // 8
    padded = torch.nn.functional.pad(packed.to(torch.int64), (0, -packed.shape[-1] % width))
    shifts = torch.arange(width, device=packed.device) * 8
    stream = (padded.unflatten(-1, (-1, width)) << shifts).sum(-1)
    codes = (stream[..., None] >> (torch.arange(group, device=packed.device) * bits)) & ((1 << bits) - 1)
    return codes.flatten(-2)[..., :count].int().contiguous()


def _gcd8(bits: int) -> int:
    """Return gcd(bits, 8): 1, 2 or 4 for the widths that are no multiple of 8."""
    return bits & -bits

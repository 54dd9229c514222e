"""Integer codes in int32 words, as the pack-quantized layout and GPTQ store them.

A row is one little-endian bit stream: element 0 takes the lowest bits of word 0, and an element may reach from one word
into the next (3, 5, 6 and 7 bits). That is `formats.packing`'s stream of bytes, filled up to whole words.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats.packing import pack, packed_size, unpack


def to_words(codes: Tensor, bits: int) -> Tensor:
    """Return unsigned codes ``[..., n]`` of ``bits`` bits as int32 ``[..., ceil(n * bits / 32)]``."""
    return bytes_to_words(pack(codes, bits))


def bytes_to_words(stream: Tensor) -> Tensor:
    """Return a stream of bytes ``uint8 [..., b]`` as int32 ``[..., ceil(b / 4)]``, zeros behind the end."""
    return F.pad(stream, (0, -stream.shape[-1] % 4)).contiguous().view(torch.int32)


def from_words(words: Tensor, bits: int, count: int) -> Tensor:
    """Return the ``count`` unsigned codes per row that `to_words` packed, int32 ``[..., count]``.

    Raises InputError where the words are not int32 or not as many as the codes take.
    """
    expected = -(-count * bits // 32)
    if words.dtype != torch.int32 or words.shape[-1] != expected:
        raise InputError(
            f"packed codes of shape {tuple(words.shape)} and {words.dtype}; expected {expected} int32 words per row "
            f"for {count} codes of {bits} bits"
        )
    stream = words.contiguous().view(torch.uint8)
    return unpack(stream[..., : packed_size(count, bits)], bits, count)


def offset_binary(codes: Tensor, bits: int) -> Tensor:
    """Return two's complement codes as offset binary, or back: the sign bit flips."""
    return codes.int() ^ (1 << (bits - 1))

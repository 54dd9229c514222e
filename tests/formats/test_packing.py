"""Sub-byte codes in bytes: every width, ragged rows, the order of nibbles."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import pack_bits

from narrowcast.errors import InputError
from narrowcast.formats import pack, unpack
from narrowcast.formats.packing import packed_size


@pytest.mark.parametrize("bits", range(1, 17))
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_round_trip_and_bit_stream(bits, data):
    count = data.draw(st.integers(0, 41))
    rows = data.draw(st.lists(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count), min_size=1))
    codes = torch.tensor(rows, dtype=torch.int32).view(len(rows), count)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (len(rows), packed_size(count, bits))
    assert [bytes(row.tolist()) for row in packed] == [pack_bits(row, bits) for row in rows]
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", [19, 24, 32])
def test_wide_codes_too(bits):
    """tf32 and float32 have codes of 19 and 32 bits; they come back as int32 bit patterns."""
    codes = torch.tensor([0, 1, 2**bits - 1, 2 ** (bits - 1), 12345], dtype=torch.int64)
    assert torch.equal(unpack(pack(codes, bits), bits, 5).long() & (2**bits - 1), codes)


@given(shape=st.lists(st.integers(0, 5), min_size=1, max_size=4), bits=st.integers(1, 16))
@settings(max_examples=60, deadline=None)
def test_any_leading_shape_and_strides(shape, bits):
    codes = torch.arange(int(np.prod(shape)), dtype=torch.int32).view(shape) % (1 << bits)
    assert torch.equal(unpack(pack(codes, bits), bits, shape[-1]), codes)
    swapped = codes.transpose(0, -1)
    assert torch.equal(unpack(pack(swapped, bits), bits, swapped.shape[-1]), swapped)


def test_each_row_starts_on_a_fresh_byte():
    codes = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert pack(codes, 4).tolist() == [[0x21, 0x03], [0x54, 0x06]]


def test_the_first_of_two_nibbles_is_the_low_one():
    """OCP MX, torch's float4_e2m1fn_x2 and TransformerEngine; bitsandbytes has it the other way round."""
    codes = torch.tensor([0x1, 0x2, 0xA, 0xF])
    packed = pack(codes, 4)
    assert packed.tolist() == [0x21, 0xFA]
    assert (packed & 0xF).tolist() == codes[::2].tolist()
    assert (packed >> 4).tolist() == codes[1::2].tolist()


@pytest.mark.parametrize("name", ["int4", "uint4", "int2", "uint2", "float4_e2m1fn", "float6_e2m3fn"])
def test_codes_are_those_of_ml_dtypes(name):
    """ml_dtypes keeps one code a byte; its bits, packed and unpacked, give its values back."""
    kind = np.dtype(getattr(ml_dtypes, name))
    bits = int("".join(c for c in name.partition("_")[0] if c.isdigit()))
    values = np.arange(1 << bits, dtype=np.uint8).view(kind)
    codes = torch.from_numpy(values.view(np.uint8) & ((1 << bits) - 1))
    back = unpack(pack(codes, bits), bits, len(codes)).to(torch.uint8).numpy()
    assert np.array_equal(back.view(kind).astype(np.float32), values.astype(np.float32))


@pytest.mark.parametrize(("count", "bits", "size"), [(0, 4, 0), (1, 1, 1), (3, 6, 3), (5, 3, 2), (4, 8, 4), (3, 12, 5)])
def test_size(count, bits, size):
    assert packed_size(count, bits) == size


@pytest.mark.parametrize("bits", [0, 33, -1])
def test_impossible_widths_are_refused(bits):
    with pytest.raises(InputError, match="expected 1 to 32"):
        pack(torch.zeros(3, dtype=torch.int32), bits)
    with pytest.raises(InputError, match="expected 1 to 32"):
        unpack(torch.zeros(3, dtype=torch.uint8), bits, 3)


def test_a_row_of_the_wrong_length_is_refused():
    with pytest.raises(InputError, match="packed row has 3 bytes, expected 2 for 5 codes of 3 bits"):
        unpack(torch.zeros(2, 3, dtype=torch.uint8), 3, 5)

"""Random bits: known answers, the layout of draws, independence of sharding, and plain statistics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.references import draw_of_element, philox_words

from narrowcast.errors import InputError
from narrowcast.formats import Stream, philox

# Random123's kat_vectors, "philox4x32 10": counter, key, answer.
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI, (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
word32 = st.integers(0, 0xFFFFFFFF)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(counter, key, answer):
    assert tuple(int(w) for w in philox(counter, key)) == answer
    assert philox_words(counter, key) == answer
    as_tensors = tuple(torch.tensor([c, c], dtype=torch.int64) for c in counter)
    assert [w.tolist() for w in philox(as_tensors, key)] == [[a, a] for a in answer]


@given(st.tuples(word32, word32, word32, word32), st.tuples(word32, word32))
@settings(max_examples=100, deadline=None)
def test_any_counter_and_key_against_python_integers(counter, key):
    assert tuple(int(w) for w in philox(counter, key)) == philox_words(counter, key)


@given(st.integers(0, 2**64 - 1), word32, word32)
@settings(max_examples=30, deadline=None)
def test_layout_of_draws(seed, tensor, step):
    """Element i gets 16 bits of block i // 8, low half first, whatever the shape."""
    expected = [draw_of_element(seed, tensor, step, i) for i in range(21)]
    stream = Stream(seed, tensor, step)
    assert stream.bits((21,)).tolist() == expected
    assert stream.bits((3, 7)).flatten().tolist() == expected
    assert Stream(seed, tensor, torch.tensor(step)).bits((21,)).tolist() == expected


@st.composite
def pieces(draw):
    whole = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    start = [draw(st.integers(0, n - 1)) for n in whole]
    shape = [draw(st.integers(0, n - s)) for n, s in zip(whole, start, strict=True)]
    return whole, start, shape


@given(pieces(), st.integers(0, 2**64 - 1))
@settings(max_examples=150, deadline=None)
def test_a_piece_draws_what_the_whole_draws_there(piece, seed):
    whole, start, shape = piece
    stream = Stream(seed, tensor=5, step=9)
    index = tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
    assert torch.equal(stream.bits(shape, whole=whole, start=start), stream.bits(whole)[index])


@pytest.mark.parametrize("axis", range(3))
def test_shards_along_any_axis_join_to_the_whole(axis):
    whole, stream = (4, 6, 10), Stream(seed=3)
    half = [n // 2 if i == axis else n for i, n in enumerate(whole)]
    starts = [[0, 0, 0], [whole[axis] // 2 if i == axis else 0 for i in range(3)]]
    joined = torch.cat([stream.bits(half, whole=whole, start=s) for s in starts], dim=axis)
    assert torch.equal(joined, stream.bits(whole))


def test_an_element_beyond_four_billion_blocks_has_its_own_draw():
    """The second counter word carries the block's high part: element 2**35 starts block 2**32."""
    far = Stream(seed=1).bits((2,), whole=(2**36,), start=(2**35,))
    assert far.tolist() == [draw_of_element(1, 0, 0, 2**35 + i) for i in range(2)]


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,)])
def test_shapes_without_much_in_them(shape):
    assert Stream().bits(shape).shape == shape


@pytest.mark.parametrize(("shape", "whole", "start"), [((3,), (4,), (2,)), ((2, 2), (4,), (0,)), ((5,), (4,), None)])
def test_a_piece_outside_the_whole_is_refused(shape, whole, start):
    with pytest.raises(InputError, match="outside"):
        Stream().bits(shape, whole=whole, start=start)


def test_seed_tensor_and_step_each_change_every_block():
    base = Stream(1, 2, 3).bits((1000,))
    for other in (Stream(2, 2, 3), Stream(1 + 2**32, 2, 3), Stream(1, 3, 3), Stream(1, 2, 4)):
        blocks = (other.bits((1000,)) == base).view(-1, 8)
        assert not blocks.all(-1).any()


def test_a_step_that_advances_inside_compiled_code_does_not_recompile():
    torch.compiler.reset()
    compiled = torch.compile(lambda step: Stream(7, 1, step).bits((64,)), fullgraph=True, backend="eager")
    for step in range(3):
        assert torch.equal(compiled(torch.tensor(step)), Stream(7, 1, step).bits((64,)))


def sigmas(found: float, expected: float, deviation: float) -> float:
    return abs(found - expected) / deviation


def test_statistics_of_a_million_draws():
    """Fixed seed, so this passes or fails for good: every figure lies within four sigmas of a fair source's."""
    n = 1 << 20
    draws = Stream(seed=2024).bits((n,)).double()
    uniform = (draws + 0.5) / 65536
    assert sigmas(float(uniform.mean()), 1 / 2, math.sqrt(1 / 12 / n)) < 4
    assert sigmas(float(uniform.var()), 1 / 12, math.sqrt(1 / 180 / n)) < 4
    for byte in (draws.long() & 0xFF, draws.long() >> 8):
        counts = torch.bincount(byte, minlength=256).double()
        chi_square = float(((counts - n / 256) ** 2 / (n / 256)).sum())
        assert sigmas(chi_square, 255, math.sqrt(2 * 255)) < 4
    for lag in (1, 2, 8, 4096):
        correlation = float(((uniform[lag:] - 0.5) * (uniform[:-lag] - 0.5)).mean()) * 12
        assert sigmas(correlation, 0, 1 / math.sqrt(n - lag)) < 4


# Torch's own warnings, while it loads its compiler.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_compiled_draws_equal_eager_ones():
    """Small shapes: a version that stacked the words came out wrong there (element 1 of 8), and only there."""

    def draw(step):
        return [Stream(3, 1, step).bits(shape) for shape in ((8,), (5, 7))]

    torch.compiler.reset()
    compiled = torch.compile(draw, fullgraph=True)
    for step in (torch.tensor(0), torch.tensor(7)):
        assert all(torch.equal(a, b) for a, b in zip(compiled(step), draw(step), strict=True))

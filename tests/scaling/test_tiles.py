"""Tiles: which elements share a scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from narrowcast.errors import InputError
from narrowcast.scaling import ROW, TENSOR, Tile, tile


def elements_of_each_tile(t: Tile, shape: tuple[int, ...]) -> list[list[int]]:
    """The flat indices inside each tile, as `blocks` groups them."""
    index = torch.arange(int(torch.tensor(shape).prod())).view(shape)
    blocks, inside = t.blocks(t.padded(index))
    axes = [a % blocks.dim() for a in inside]
    outer = [a for a in range(blocks.dim()) if a not in axes]
    grouped = blocks.permute(*outer, *axes).reshape(-1, max(1, torch.tensor([blocks.shape[a] for a in axes]).prod()))
    return grouped.tolist()


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        ("tensor", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("row", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("1x2", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("2x2", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("2x4", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("1x1", [[0], [1], [2], [3], [4], [5], [6], [7]]),
    ],
)
def test_which_elements_share_a_scale(spelling, expected):
    assert elements_of_each_tile(tile(spelling), (2, 4)) == expected
    assert tile(spelling).count((2, 4)) == len(expected)


@given(
    lead=st.lists(st.integers(1, 3), max_size=2),
    rows=st.integers(1, 9),
    cols=st.integers(1, 9),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
)
@settings(max_examples=150, deadline=None)
def test_padded_tiles_cover_everything_once(lead, rows, cols, size):
    t, shape = Tile(*size, pad=True), (*lead, rows, cols)
    x = torch.ones(shape)
    padded = t.padded(x)
    assert padded.shape[-1] % size[1] == padded.shape[-2] % size[0] == 0
    assert padded.shape[-1] - cols < size[1] and padded.shape[-2] - rows < size[0]
    assert torch.equal(padded[..., :rows, :cols], x) and padded.sum() == x.sum()
    blocks, inside = t.blocks(padded)
    assert blocks.data_ptr() == padded.data_ptr()  # a view: nothing is copied
    assert blocks.sum(inside).numel() == t.count(shape)


def test_a_ragged_size_is_an_error_that_names_everything():
    with pytest.raises(InputError, match=r"layer 'up' of shape \(4, 33\): tile 1x32 .* last axis; .*'1x32\+pad'"):
        tile("1x32").padded(torch.ones(4, 33), "layer 'up'")
    with pytest.raises(InputError, match=r"tile 16x16 does not divide its last two axes"):
        tile("16x16").padded(torch.ones(4, 32))


def test_tensor_and_row_take_any_size():
    for t in (TENSOR, ROW):
        x = torch.ones(3, 7)
        assert t.padded(x) is x


@pytest.mark.parametrize("shape", [(0, 32), (4, 0), (2, 0, 64)])
def test_empty_tensors_have_blocks_too(shape):
    for spelling in ("tensor", "row", "1x32"):
        assert tile(spelling).blocks(tile(spelling).padded(torch.ones(shape)))[0].numel() == 0


@pytest.mark.parametrize("spelling", ["tensor", "row", "1x32", "128x128", "1x32+pad", "16x16+pad"])
def test_spelling_round_trip(spelling):
    assert str(tile(spelling)) == spelling
    assert tile(str(tile(spelling))) == tile(spelling)


@pytest.mark.parametrize(
    "spelling", ["", "1x", "x32", "0x32", "1x0", "1x32+pat", "rows", "row+pad", "tensor+pad", "1x32+"]
)
def test_bad_spellings_are_refused(spelling):
    with pytest.raises(InputError):
        tile(spelling)


@pytest.mark.parametrize("fields", [(-1, 32), (2, 0), (0, 32), (1, 0, True), (0, 0, True)])
def test_impossible_tiles_are_refused_at_birth(fields):
    with pytest.raises(InputError, match="tile"):
        Tile(*fields)


def test_square_tiles_need_two_axes_and_runs_need_one():
    with pytest.raises(InputError, match="two axes"):
        tile("2x2").blocks(torch.ones(4))
    with pytest.raises(InputError, match="axis"):
        tile("1x2").padded(torch.tensor(1.0))

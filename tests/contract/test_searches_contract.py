"""What every search of scales promises, over casts of one level, two levels and a scale per sign."""

from dataclasses import replace

import pytest
import torch

from narrowcast.errors import InputError
from narrowcast.formats.packing import unpack
from narrowcast.ptq import AbsMax, LeastError, LeastOutputError, LeastRowError, Percentile, output_error, recipe
from narrowcast.quantize import cast

SEARCHES = [
    AbsMax(),
    Percentile(99),
    LeastError(2.0, 10),
    LeastOutputError(10),
    LeastRowError(10),
    LeastRowError(9, 0.4, 2),
]
CASTS = ["int4_full/1x32+pad/fp32", "int4/row/fp32", "e2m1fn/1x32+pad/e8m0", "e2m1fn/1x16/e4m3fn+fp32",
         "nf4/1x32/dynamic8+fp32x256-mean", "int3/1x32/fp32-signs", "int4_full/1x32/divide-float16",
         "int4_full/1x32/fp32-zero4"]  # fmt: skip
each = pytest.mark.parametrize(
    ("search", "spelling"), [(s, c) for s in SEARCHES for c in CASTS], ids=lambda v: repr(v) if v in SEARCHES else v
)


def layer(k: int, rows: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights with a row of zeros, and the H of correlated inputs."""
    g = torch.Generator().manual_seed(k)
    x = torch.randn(300, k, generator=g) @ (torch.eye(k) + 0.3 * torch.randn(k, k, generator=g))
    w = torch.randn(rows, k, generator=g)
    w[1] = 0.0
    return w, x.T @ x


@each
def test_ratios_are_shares_one_per_tile_and_the_same_each_time(search, spelling):
    c = cast(spelling)
    w, h = layer(112 if c.tile.pad else 96)
    kept = w.clone(), h.clone()
    found, again = search.ratio(w, c, h), search.ratio(w, c, h)
    assert torch.equal(w, kept[0]) and torch.equal(h, kept[1])
    if found is None:
        assert again is None
        return
    assert torch.equal(found, again) and bool(((found > 0) & (found <= 1)).all())
    settled = search.settle(w, c, h)
    assert torch.broadcast_shapes(found.shape, settled.tiles) == settled.tiles
    assert torch.equal(settled.apply(w)[1], w[1])


@pytest.mark.parametrize("spelling", CASTS)
def test_whole_rows_are_never_worse_than_tiles_alone(spelling):
    c = cast(spelling)
    w, h = layer(112 if c.tile.pad else 96)
    alone, row, more = (
        output_error(w, s.settle(w, c, h).apply(w), h)
        for s in (LeastOutputError(10), LeastRowError(10), LeastRowError(10, passes=4))
    )
    assert row <= alone and more <= alone
    if c.scale.tensor_bits == 0 and c.tile.cols == 32 and "e8m0" not in spelling:
        assert more <= row < alone


def test_tiles_that_do_not_meet_in_the_outputs_are_settled_alone():
    """Under an H without terms between tiles the whole row's error is the sum of the tiles' own."""
    w, h = layer(96)
    c, apart = cast("int4_full/1x32/fp32"), torch.block_diag(*torch.ones(3, 32, 32))
    assert torch.equal(LeastRowError(10).ratio(w, c, h * apart), LeastOutputError(10).ratio(w, c, h * apart))
    assert torch.equal(LeastRowError(10).ratio(w, c), LeastOutputError(10).ratio(w, c))


def test_a_pass_over_whole_rows_matches_a_brute_force_in_float64():
    w, h = layer(64, rows=6)
    c = cast("int4_full/1x32/fp32")
    first, found = LeastOutputError(8).ratio(w, c, h), LeastRowError(8).ratio(w, c, h)
    expected = first.clone()
    for row in range(6):
        for tile in range(2):
            errors = []
            for ratio in LeastOutputError(8).ratios:
                tried = expected.clone()
                tried[row, tile] = ratio
                d = (c.settle(w, tried).apply(w) - w).double()[row]
                errors.append(float(d @ h.double() @ d))
            expected[row, tile] = LeastOutputError(8).ratios[errors.index(min(errors))]
    assert torch.equal(found, expected) and not torch.equal(found, first)


@pytest.mark.parametrize("name", ["w4a16-rtn", "w4a16-gptq", "w4a16-awq", "w4a16-descent"])
def test_integer_recipes_use_the_code_below_all_others_only_where_something_is_clipped(name):
    w, h = layer(128)
    c = recipe(name).scheme.weight
    without = replace(c, format=cast("int4/row/fp32").format)
    assert torch.equal(c.apply(w), without.apply(w))
    assert int(unpack(c.quantize(w).codes, 4, 128).eq(8).sum()) == 0
    assert int(unpack(LeastRowError(10).settle(w, c, h).quantize(w).codes, 4, 128).eq(8).sum()) > 0


@pytest.mark.parametrize(
    "make", [lambda: LeastRowError(0), lambda: LeastRowError(passes=0), lambda: LeastRowError(9, 0.0)]
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(InputError, match="scale search"):
        make()


@pytest.mark.parametrize("search", [LeastOutputError(4), LeastRowError(4)])
def test_tiles_of_several_rows_are_refused(search):
    w, h = layer(96)
    with pytest.raises(InputError, match="tiles of one row"):
        search.ratio(w, cast("e4m3fn/8x32/fp32"), h)

"""LogFMT against its formula in float64."""

import math

import pytest
import torch

from narrowcast.errors import InputError
from narrowcast.storage import LogTile, storage

EIGHT = LogTile(8)


def grid(tile: torch.Tensor, bits: int) -> torch.Tensor:
    """Magnitudes of the sheet's formula, natural logarithms, zero first."""
    logs = tile[tile != 0].abs().double().log()
    top = logs.max()
    low = max(logs.min(), top - math.log(2.0**32))
    step = (top - low) / (2 ** (bits - 1) - 2)
    return torch.cat([torch.zeros(1), (low + step * torch.arange(2 ** (bits - 1) - 1)).exp()])


@pytest.mark.parametrize("bits", [4, 8, 10])
def test_values_are_the_nearest_of_the_tiles_grid(bits):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(30, 128, generator=g) * 10.0 ** torch.randint(-20, 15, (30, 1), generator=g)
    x[3] *= 10.0 ** torch.randint(-9, 1, (128,), generator=g)
    kept = LogTile(bits)
    back = kept.load(kept.store(x.flatten()), x.numel()).view_as(x).double()
    for tile, found in zip(x, back, strict=True):
        values = grid(tile, bits)
        wanted = (tile.double().abs()[:, None] - values).abs()
        off = (found.abs() - tile.double().abs()).abs() - wanted.min(1).values
        assert (off <= 3e-5 * tile.double().abs()).all()  # the grid's own values are within 3e-5 of the formula's
        assert torch.equal(found.sign() * (found != 0), tile.double().sign() * (found != 0))


def test_neighbours_are_at_most_a_fifth_apart():
    x = torch.cat([torch.tensor([2.0**-40, 1.0]), torch.ones(126)])
    step = float(EIGHT.store(x)["step"])
    assert 2**step == pytest.approx(math.exp(math.log(2.0**32) / 126)) == pytest.approx(1.1925, abs=1e-4)
    assert EIGHT.steps + 1 == 127


def test_edges():
    x = torch.zeros(4 * 128)
    x[128] = -3.0
    x[256:384] = 0.7
    x[384] = math.inf
    back = EIGHT.load(EIGHT.store(x), len(x))
    assert not back[:128].any() and back[128] == -3.0 and not back[129:256].any()
    assert torch.equal(back[256:384], x[256:384]) and back[384:].isnan().all()
    assert storage("logfmt10/1x64+pad") == LogTile(10, 64) and LogTile(10).bits_per_element(128) == 10.5
    with pytest.raises(InputError, match="expected 3 to 16 bits"):
        storage("logfmt2/1x128+pad")

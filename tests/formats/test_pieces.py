import torch

from narrowcast.formats import NEAREST_EVEN, Stream, rounding
from narrowcast.formats import format as format_
from narrowcast.formats.pieces import PIECE, by_pieces


def test_pieces_come_back_in_place_and_alone():
    x, random = torch.arange(1001.0).view(7, 143).T, torch.arange(1001).view(7, 143).T
    seen = []

    def work(some, drawn):
        seen.append(some.numel())
        return torch.stack([some, some + drawn], dim=-1)

    found = by_pieces(work, x, random, piece=16)
    assert seen == [16] * 62 + [9]
    assert torch.equal(found, torch.stack([x, 2 * x], dim=-1))


def test_a_small_tensor_stays_whole():
    assert by_pieces(lambda some, _: some.clone(), torch.ones(4, 16), None, piece=16).shape == (4, 16)


def test_a_large_tensor_rounds_like_its_parts():
    x = torch.randn(5 * PIECE + 7, generator=torch.Generator().manual_seed(0))
    draws = Stream(3).bits(x.shape)
    rows = [slice(i, i + PIECE) for i in range(0, x.numel(), PIECE)]
    assert torch.equal(draws, torch.cat([Stream(3).bits(x[r].shape, whole=x.shape, start=(r.start,)) for r in rows]))
    for name, mode in (("e4m3fn", NEAREST_EVEN), ("e2m1fn", rounding("stochastic"))):
        fmt = format_(name)
        assert torch.equal(fmt.round(x, mode, draws), torch.cat([fmt.round(x[r], mode, draws[r]) for r in rows]))
        assert torch.equal(fmt.encode(x, mode, draws), torch.cat([fmt.encode(x[r], mode, draws[r]) for r in rows]))


def test_many_draws_are_those_of_their_elements():
    n = 16 * PIECE + 9
    draws = Stream(3).bits((n,))
    for start in (0, 4 * PIECE - 8, 8 * PIECE - 8, n - 16):  # across the joints, and at both ends
        assert torch.equal(draws[start : start + 16], Stream(3).bits((16,), whole=(n,), start=(start,)))

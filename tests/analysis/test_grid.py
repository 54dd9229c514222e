"""Where values lie: gaps and reach."""

import math

import pytest
import torch

import narrowcast as nc
from narrowcast.analysis.grid import neighbours, reach, spacing


def test_reach_of_e4m3fn():
    found = reach(nc.format("e4m3fn"))
    assert found.magnitudes == 126
    assert found.binades == pytest.approx(math.log2(448 * 2**9))
    assert found.decibels == pytest.approx(20 * math.log10(448 * 2**9))
    assert found.finest == 2**-4


@pytest.mark.parametrize("name", list(nc.formats()))
def test_neighbours_are_neighbours(name):
    fmt = nc.format(name)
    below, above = neighbours(fmt)
    assert (above > below).all() and (below > 0).all()
    middle = below + (above - below) / 2
    if fmt.bits <= 16 and len(middle):
        down, up = fmt.neighbours(middle)
        assert torch.equal(down.double(), below) and torch.equal(up.double(), above)


@pytest.mark.parametrize(("name", "mantissa"), [("float32", 23), ("tf32", 10)])
def test_wide_formats_are_probed(name, mantissa):
    below, above = neighbours(nc.format(name))
    normal = below >= 2.0**-126
    assert torch.equal((above - below)[normal], 2.0 ** (below[normal].log2().floor() - mantissa))


def test_the_staircase_of_e2m1():
    assert spacing(nc.format("e2m1fn")) == ([0.5, 1.5, 2.0, 3.0, 4.0], [0.5, 0.5, 1.0, 1.0, 2.0])
    assert spacing(nc.format("int8")) == ([1.0, 126.0], [1.0, 1.0])

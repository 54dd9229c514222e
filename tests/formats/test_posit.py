"""Posits against Universal's value tables, SoftPosit's codes and the values that papers print."""

import csv
import hashlib
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.witnesses import every_half

import narrowcast as nc
from narrowcast.errors import InputError
from narrowcast.formats import Posit, rounding
from narrowcast.formats.posit import posit_values

DATA = os.environ.get("NARROWCAST_DATA")
SOFTPOSIT = json.loads((Path(__file__).parent / "data" / "softposit.json").read_text())["codes"]
POSIT41 = [0, 1 / 16, 1 / 4, 1 / 2, 1, 2, 4, 16]
POSIT51 = [0, 1 / 64, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1, 1.5, 2, 3, 4, 8, 16, 64]


def universal_rows():
    """(n, es, code, value) of each row of Universal's table; value None for NaR."""
    rows = csv.reader((Path(DATA) / "golden-formats" / "universal_posit.csv").read_text().splitlines())
    for row in rows:
        if match := re.fullmatch(r"(\d+)\.(\d+)x([0-9A-F]+)p", row[-1] if row else ""):
            yield int(match[1]), int(match[2]), int(match[3], 16), None if row[9] in ("nar", "inf", "nan") else row[9]


@pytest.mark.skipif(DATA is None, reason="NARROWCAST_DATA is not set: Universal's table is not here")
def test_values_are_those_of_universals_table():
    found = {}
    for n, es, code, printed in universal_rows():
        found.setdefault((n, es), []).append((code, printed))
    assert sum(map(len, found.values())) == 2724
    for (n, es), rows in found.items():
        codes = np.array([code for code, _ in rows])
        nar = 1 << (n - 1)
        values = np.where(codes > nar, -posit_values((2 * nar - codes) % nar, n, es), posit_values(codes % nar, n, es))
        values[codes == nar] = np.nan
        for value, (code, printed) in zip(values, rows, strict=True):
            same = math.isnan(value) if printed is None else value == float(printed)
            assert same, (n, es, code, value, printed)
        if es <= 3:
            assert np.array_equal(Posit("one", n, es).decode(torch.from_numpy(codes)), values, equal_nan=True)


@pytest.mark.parametrize("which", SOFTPOSIT)
def test_codes_are_those_of_softposit_on_every_16_bit_input(which):
    name, kind = which.split("/")
    codes = nc.format(name).encode(every_half()[kind]).numpy()
    assert hashlib.sha256(codes.astype("<u2").tobytes()).hexdigest() == SOFTPOSIT[which]


@pytest.mark.parametrize(
    ("name", "pairs"),
    [
        # computed with SoftPosit for sheets on compressed real numbers and XR-NPE
        ("posit8_0", [(1.015625, 1.0), (1.046875, 1.0625), (0.3, 0.296875), (3.14159265, 3.125), (10.9, 10), (11, 12),
                      (48, 32), (48.1, 64), (1000, 64), (1e-9, 1 / 64), (0.0078125, 1 / 64), (-0.3, -0.296875)]),
        ("posit16_1", [(0.3, 0.29998779296875), (3.14159265, 3.1416015625), (10.9, 10.8984375),
                       (0.007, 0.0070037841796875), (1e-9, 2.0**-28)]),
        ("posit4_1", [(1 / 64, 1 / 16), (1 / 8, 1 / 4), (3 / 8, 1 / 4), (3 / 4, 1), (1.5, 1), (3, 4), (8, 4)]),
        ("posit8_1", [(2048, 1024), (2049, 4096)]),  # between 1024 and 4096 the middle is geometric
    ],
)  # fmt: skip
def test_encoding_examples(name, pairs):
    x, expected = (torch.tensor(column, dtype=torch.float32) for column in zip(*pairs, strict=True))
    assert nc.format(name).round(x).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("name", "code", "value"),
    [("posit8_0", 0x40, 1), ("posit8_0", 0x20, 0.5), ("posit8_0", 0x5F, 1.96875), ("posit8_0", 0x6F, 3.875),
     ("posit8_0", 0x77, 7.5), ("posit8_0", 0x7D, 24), ("posit8_0", 0x7F, 64), ("posit8_1", 0x41, 1.0625),
     ("posit8_1", 0x3F, 0.96875), ("posit8_1", 0x7F, 4096), ("posit8_2", 0x01, 2.0**-24), ("posit8_2", 0x41, 1.125),
     ("posit16_1", 0x5921, 3.14111328125), ("posit16_1", 0x3555, 0.6666259765625), ("posit16_1", 0x7FFE, 2.0**26),
     ("posit16_1", 0x0002, 2.0**-26), ("posit16_2", 0x4001, 1 + 2.0**-11), ("posit16_2", 0x7FFF, 2.0**56)],
)  # fmt: skip
def test_decoding_examples(name, code, value):
    assert nc.format(name).decode(torch.tensor([code])).tolist() == [value]


def test_small_tables():
    assert nc.format("posit4_1").decode(torch.arange(8)).tolist() == POSIT41
    assert nc.format("posit5_1").decode(torch.arange(16)).tolist() == POSIT51
    assert nc.format("posit4_0").decode(torch.arange(8)).tolist() == [0, 0.25, 0.5, 0.75, 1, 1.5, 2, 4]
    assert nc.format("posit6_1").decode(torch.arange(28, 32)).tolist() == [16, 32, 64, 256]


@pytest.mark.parametrize("name", ["posit4_1", "posit8_0", "posit8_2", "posit16_1", "posit16_3"])
def test_negation_is_the_twos_complement_and_codes_sort_like_values(name):
    fmt = nc.format(name)
    codes = fmt.codes().int()
    nar = 1 << (fmt.bits - 1)
    values = fmt.decode(codes)
    negated = (-codes) & ((1 << fmt.bits) - 1)
    assert torch.equal(fmt.decode(negated)[codes != nar], -values[codes != nar] + 0.0)
    signed = torch.where(codes >= nar, codes - (nar << 1), codes)
    assert torch.equal(values[codes != nar].argsort(), signed[codes != nar].argsort())


def test_nothing_finite_is_lost_to_zero_or_to_nar():
    fmt = nc.format("posit16_1")
    x = torch.tensor([1e-45, -1e-45, 1e-30, torch.finfo(torch.float32).max, -1e38, 0.0, -0.0, torch.inf, torch.nan])
    rounded = fmt.round(x)
    assert rounded[:5].tolist() == [2.0**-28, -(2.0**-28), 2.0**-28, 2.0**28, -(2.0**28)]
    assert rounded[5:7].tolist() == [0, 0] and not rounded[6].signbit()
    assert fmt.encode(x)[7:].tolist() == [0x8000, 0x8000]
    assert fmt.round(x[:3], rounding("toward-zero")).tolist() == [0, 0, 0]


def test_flush_takes_less_than_half_the_smallest_value_to_zero():
    x = torch.tensor([1 / 64, 1 / 128, 1.01 / 128, 0.99 / 128, -0.9 / 128])
    assert nc.format("posit8_0_flush").round(x).tolist() == [1 / 64, 0, 1 / 64, 0, 0]
    assert nc.format("posit8_0").round(x).tolist() == [1 / 64] * 4 + [-1 / 64]


@pytest.mark.parametrize("name", ["posit8_0", "posit8_1", "posit15_2"])
def test_every_middle_is_the_posit_with_one_bit_more(name):
    """The float32 on either side of it round to different codes, and it goes to the even one."""
    fmt = nc.format(name)
    codes = torch.arange(1, fmt.nan_code - 1)
    middles = Posit("wider", fmt.width + 1, fmt.es).decode(2 * codes + 1)
    below, above = (fmt.encode(torch.nextafter(middles, torch.tensor(t))).int() for t in (0.0, math.inf))
    assert torch.equal(below, codes.int()) and torch.equal(above, codes.int() + 1)
    assert torch.equal(fmt.encode(middles).int(), codes.int() + codes.int() % 2)


@pytest.mark.parametrize("name", ["posit1_0", "posit17_1", "posit8_4"])
def test_other_sizes_are_refused(name):
    with pytest.raises(InputError, match="posits have 2 to 16 bits and 0 to 3 exponent bits"):
        nc.format(name)

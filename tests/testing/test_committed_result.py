"""The committed conformance table is what its benchmark finds, and leaves nothing unsaid."""

import json
from importlib.metadata import version

import pytest
from bench.conformance import RESULTS, result
from bench.conformance_elements import gfloat, ml_dtypes

COMMITTED = json.loads((RESULTS / "conformance.json").read_text())
SAMPLE = {"ml_dtypes": ("e4m3fn", "e8m0", "int4"), "gfloat": ("e4m3fn", "q1.6")}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of overflow: the very cases wanted
@pytest.mark.parametrize(("peer", "rows"), [("ml_dtypes", ml_dtypes), ("gfloat", gfloat)])
def test_rows_are_found_again(peer, rows) -> None:
    if version(peer) != COMMITTED["peers"][peer]:
        pytest.skip(f"the result is of {peer} {COMMITTED['peers'][peer]}, installed is {version(peer)}")
    committed = {(row["call"], row["asked"]): row for row in COMMITTED["results"] if row["peer"] == peer}
    chosen = [row for row in rows() if row.asked["format"] in SAMPLE[peer] and row.asked.get("rounding") != "up"]
    assert len(chosen) >= len(SAMPLE[peer])
    for row in chosen:
        for found in result(peer, row):
            assert found == committed[found["call"], found["asked"]]


def test_what_differs_has_its_first_bits_and_a_rule() -> None:
    assert not COMMITTED["left_out"]
    wrong = [row for row in COMMITTED["results"] if row["differ"]]
    assert all(row["first"]["input"].startswith("0x") and row["agrees_under"] for row in wrong)
    unexplained = sum(row["unexplained"] for row in wrong)
    assert unexplained < 1e-3 * sum(row["differ"] for row in wrong)

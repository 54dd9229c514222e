"""Codes are the same on another processor and another torch: an H100 under torch 2.11 wrote the committed digests."""

import json
from pathlib import Path

from bench.codes import digests

COMMITTED = Path(__file__).parent.parent / "bench" / "results" / "codes-cuda.json"


def test_codes_here_equal_the_committed_ones_from_a_gpu():
    committed = json.loads(COMMITTED.read_text())
    assert "H100" in committed["device"]
    found = digests("cpu")
    differing = [name for name, digest in committed["digests"].items() if found[name] != digest]
    assert not differing, f"codes differ from {committed['device']}, torch {committed['torch']}: {differing[:5]}"
    assert found.keys() == committed["digests"].keys()

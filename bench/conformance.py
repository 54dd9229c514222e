"""Hold the encoders of other libraries against the formats here, bit for bit, and name the rule that each follows.

    python bench/run.py conformance [--quick] [--peer NAME]     writes bench/results/conformance.json

Every answer is exact, so one machine is enough and nothing is timed. A difference is no verdict: the standards leave
overflow, NaN and the e8m0 rule open, and the result says under which rule each library would agree. en-dtypes and
qtorch are no development requirements (qtorch compiles itself on import); they are left out where they are missing.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import conformance_blocks as blocks
from bench import conformance_elements as elements
from bench.conformance_row import Row
from rich.console import Console

from narrowcast.errors import InputError
from narrowcast.io import versions
from narrowcast.testing import Finding, conform

RESULTS = Path(__file__).parent / "results"
#: name on the package index -> its rows
PEERS: dict[str, tuple[Callable[[], Iterator[Row]], ...]] = {
    "torch": (elements.torch_casts,),
    "ml_dtypes": (elements.ml_dtypes,),
    "gfloat": (elements.gfloat, blocks.gfloat),
    "torchao": (blocks.torchao,),
    "compressed-tensors": (blocks.compressed_tensors,),
    "pychop": (elements.pychop,),
    "en-dtypes": (elements.en_dtypes,),
    "qtorch": (elements.qtorch,),
}
_QUICK = 2  # rows of each peer that --quick tries


def result(peer: str, row: Row) -> Iterator[dict[str, Any]]:
    """Yield what came of the encoder of ``row``, then of its decoder, as plain JSON values."""
    try:
        report = conform(row.encode, row.decode, **row.asked)
    except InputError as error:  # it refuses some input, or returns what is no answer: that is a result too
        yield {"peer": peer, "call": row.call, "asked": _asked(row), "refused": str(error)}
        return
    for finding in report.findings:
        yield {
            "peer": peer,
            "call": row.call if finding.kind != "decoded" else f"{row.call}, decoding",
            "asked": report.asked,
            "left_out": list(row.asked.get("leave_out", ())),
            **_summary(finding),
        }


def _asked(row: Row) -> str:
    return ", ".join(str(row.asked[key]) for key in ("format", "scale_rule", "tile", "rounding") if key in row.asked)


def _summary(finding: Finding) -> dict[str, Any]:
    wrong = [tally for tally in finding.tallies if tally.agree < tally.count]
    return {
        "kind": finding.kind,
        "answers": finding.count,
        "differ": finding.differ,
        "classes": {tally.name: [tally.count, tally.agree] for tally in wrong},
        "first": asdict(finding.first) if finding.first else None,
        "agrees_under": [asdict(reason) for reason in finding.reasons],
        "unexplained": finding.unexplained,
        "first_unexplained": asdict(finding.first_unexplained) if finding.first_unexplained else None,
    }


def measure(peer: str, quick: bool) -> list[dict[str, Any]]:
    """Return the results of one peer, printing a line for each."""
    found = []
    for make in PEERS[peer]:
        rows = list(make())
        for row in rows[:_QUICK] if quick else rows:
            for one in result(peer, row):
                found.append(one)
                if "refused" in one:
                    print(f"{peer} {one['call']} as {one['asked']}: {one['refused']}")
                    continue
                rule = "; ".join(reason["name"] for reason in one["agrees_under"])
                rest = f" ({one['unexplained']:,} unexplained)" if one["unexplained"] else ""
                verdict = f"{one['differ']:,} of {one['answers']:,} differ: {rule}{rest}" if one["differ"] else "agrees"
                Console(soft_wrap=True, markup=False, highlight=False).print(
                    f"{peer} {one['call']} as {one['asked']}: {verdict}"
                )
    return found


def main(arguments: list[str]) -> None:
    """Run every peer that is installed and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{_QUICK} rows of each kind, nothing written")
    parser.add_argument("--peer", choices=list(PEERS), help="this one alone, nothing written")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")  # the peers' own: NaN and overflow are what they are asked about
    installed, missing, results = {}, [], []
    for peer in [options.peer] if options.peer else PEERS:
        try:
            installed[peer] = version(peer)
            results += measure(peer, options.quick)
        except (PackageNotFoundError, ImportError) as error:
            installed.pop(peer, None)
            missing.append(peer)
            print(f"left out: {peer} ({error})")
    if not (options.quick or options.peer):
        path = RESULTS / "conformance.json"
        document = {"versions": versions(), "peers": installed, "left_out": missing, "results": results}
        path.write_text(json.dumps(document, indent=1, default=str) + "\n")
        print(path)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

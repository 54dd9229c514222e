"""README's second example: one real model under several post-training recipes, by the command itself, side by side.

    python bench/run.py quantized        needs NARROWCAST_DATA; writes bench/results/quantized.json

Each recipe runs as ``narrowcast quantize`` with its defaults: the model writes its own calibration text, and is judged
on text of its own that was set apart.
"""

import argparse
import json
import tempfile
from pathlib import Path

from narrowcast.cli import run
from narrowcast.report.beside import beside, sentence, write_beside
from narrowcast.report.quantize import load_quantized_report
from narrowcast.studies.study import data_folder

RESULTS = Path(__file__).parent / "results"
RECIPES = (
    "w8a8-int8", "w8a8-fp8", "w4a16-rtn-g32", "w4a16-awq-g32", "w4a16-gptq-g32", "w4a16-descent-g32", "mxfp4-gptq",
    "nvfp4-gptq",
)  # fmt: skip


def main(arguments: list[str]) -> None:
    """Quantize, write the result file, print what to choose between."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--page", type=Path, help="folder for the page")
    options = parser.parse_args(arguments)
    data = data_folder()
    if data is None:
        raise SystemExit("error: NARROWCAST_DATA names no folder of real data")
    model, reports = data / "lm-stories260K" / "hf", []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.recipes:
            out = Path(folder) / name
            status = run(["quantize", str(model), "--recipe", name, "--out", str(out)])
            if status:
                raise SystemExit(status)
            report = load_quantized_report(out / "report.json")
            report["model"]["name"], report["command"] = "stories260K", f"narrowcast quantize MODEL --recipe {name}"
            reports.append(report)
    found = beside(reports)
    path = RESULTS / "quantized.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    if options.page:
        print(write_beside(found, options.page))
    print(sentence(found), path, sep="\n")

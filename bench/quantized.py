"""README's second example: real models under several post-training recipes, by the command itself, side by side.

    python bench/run.py quantized [--page DIR]       needs NARROWCAST_DATA; writes bench/results/quantized.json

The models: stories260K, judged on text that it writes itself; and a Llama that ``narrowcast train`` trains here for
4000 steps on the standard library's source, so that it has something to lose, judged on the source of asyncio.
"""

import argparse
import json
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from narrowcast.cli import run
from narrowcast.report.beside import beside, sentence, write_beside
from narrowcast.report.quantize import load_quantized_report
from narrowcast.studies.study import data_folder

RESULTS = Path(__file__).parent / "results"
RECIPES = (
    "w8a8-int8", "w8a8-fp8", "w4a16-rtn-g32", "w4a16-awq-g32", "w4a16-gptq-g32", "w4a16-descent-g32", "mxfp4-gptq",
    "nvfp4-gptq",
)  # fmt: skip
ROTATED = ("mxfp4-mr-gptq", "nvfp4-mr-gptq")  # widths of stories260K are no multiples of their rotations
TRAIN = ("train", "--recipe", "fp32", "--steps", "4000", "--checkpoint-every", "4000", "--eval-every", "1000")


def command(*arguments: str) -> None:
    """Run the command; leave with its status where it is not 0."""
    status = run(list(arguments))
    if status:
        raise SystemExit(status)


def quantized(name: str, model: Path, recipes: tuple[str, ...], out: Path, *options: str) -> dict[str, Any]:
    """Return ``model`` under every recipe, side by side."""
    reports = []
    for recipe in recipes:
        command("quantize", str(model), "--recipe", recipe, "--out", str(out / recipe), *options)
        report = load_quantized_report(out / recipe / "report.json")
        report["model"]["name"], report["command"] = name, f"narrowcast quantize MODEL --recipe {recipe}"
        report["calibration"]["source"] = "the source of asyncio" if options else "text that the model wrote itself"
        reports.append(report)
    return beside(reports)


def main(arguments: list[str]) -> None:
    """Quantize, write the result file, print what to choose between."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", type=Path, help="folder for a page per model")
    options = parser.parse_args(arguments)
    data = data_folder()
    if data is None:
        raise SystemExit("error: NARROWCAST_DATA names no folder of real data")
    with tempfile.TemporaryDirectory() as folder:
        here, source = Path(folder), Path(sysconfig.get_paths()["stdlib"]) / "asyncio"
        command(*TRAIN, "--out", str(here / "llama"))
        models = [
            quantized("stories260K", data / "lm-stories260K" / "hf", RECIPES, here / "stories"),
            quantized(f"a Llama trained by narrowcast {' '.join(TRAIN[:5])}", here / "llama" / "model",
                      (*RECIPES, *ROTATED), here / "code", "--data", str(source), "--length", "64"),
        ]  # fmt: skip
    path = RESULTS / "quantized.json"
    path.write_text(json.dumps({"models": models}, indent=1) + "\n")
    for number, found in enumerate(models):
        print(sentence(found))
        if options.page:
            print(write_beside(found, options.page / str(number)))
    print(path)

"""What emulated training costs: seconds per update of each recipe as multiples of the same float32 update.

    python bench/run.py train [--recipes fp8-rowwise,mxfp4] [--threads 2]     writes bench/results/train-cpu.json

The default small Llama, eager. Updates of all recipes are interleaved, so that a busy machine slows all alike; a figure
is the median of the ratios within each round.
"""

import argparse
import json
import statistics
import time
from datetime import date
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import narrowcast as nc
from narrowcast.io import versions
from narrowcast.train import TrainConfig, Trainer

RESULTS = Path(__file__).parent / "results"


def measure(names: list[str], rounds: int, batch: int, context: int) -> dict[str, dict[str, float]]:
    """Return per recipe the median milliseconds per update, and the median ratio to float32 in the same round."""
    trainers = {n: Trainer(TrainConfig(recipe=n, batch=batch, context=context), None) for n in ["fp32", *names]}
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(rounds + 2):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            trainer.update()
            seconds[name].append(time.perf_counter() - start)
    kept = {name: times[2:] for name, times in seconds.items()}  # two rounds of warming up
    return {
        name: {
            "ms": 1e3 * statistics.median(times),
            "ratio": statistics.median(t / base for t, base in zip(times, kept["fp32"], strict=True)),
        }
        for name, times in kept.items()
    }


def main(arguments: list[str]) -> None:
    """Measure, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(n for n in nc.recipes() if n != "fp32"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=64)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found = measure(options.recipes.split(","), options.rounds, options.batch, options.context)
    table = Table("recipe", "ms per update", "times fp32", title="emulated training, eager")
    for name, row in found.items():
        table.add_row(name, f"{row['ms']:.1f}", f"{row['ratio']:.2f}")
    Console().print(table)
    settings = {"batch": options.batch, "context": options.context, "rounds": options.rounds, "mode": "eager"}
    result = {"versions": versions(), "date": date.today().isoformat(), "settings": settings, "recipes": found}
    path = RESULTS / "train-cpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])

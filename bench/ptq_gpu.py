"""Whether `narrowcast quantize` gives on a GPU what it gives on a CPU, and whether the result loads.

    python bench/run.py ptq_gpu [--model FOLDER --data TEXT] [--device cuda] [--out DIR] [--work DIR]

stories260K of NARROWCAST_DATA (or any folder and text) by each recipe, on both devices, in a process each: which
tensors of the two folders are the same bytes; where codes differ, how many, and how far the decoded weights; what both
models lost on text set apart. Each folder of the compressed-tensors layout is loaded by `transformers` too, and its
logits held against those of `nc.load`. Last, one run on the device that writes its calibration text itself. Writes
bench/results/ptq-DEVICE.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import nn

import narrowcast as nc
from narrowcast.errors import CheckFailed, InputError
from narrowcast.io import versions, write_atomic
from narrowcast.io.weights import folder_weights
from narrowcast.models.quiet import quiet

RESULTS = Path(__file__).parent / "results"
PLAIN = ("--layout", "narrowcast")
SERVED = ("--layout", "compressed-tensors", "--keep-wide", "*down_proj")  # 172 inputs: no tile of 32 divides them
#: recipe, and the options that this model needs
RUNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("w4a16-gptq-g32", SERVED),
    ("w4a16-gptq-g32", PLAIN),
    ("w8a8-fp8", SERVED[:2]),
    ("nvfp4-mr-gptq", (*PLAIN, "--keep-wide", "*down_proj")),
    ("mxfp4-gptq", (*SERVED, "--dtype", "bfloat16")),
)


def quantized(options: argparse.Namespace, recipe: str, how: tuple[str, ...], device: str, data: Path | None) -> Path:
    """Return the folder that a process of its own has made."""
    name = f"{recipe}-{'self' if data is None else how[1]}-{device}"
    out = options.work / name
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable, "-m", "narrowcast", "quantize", str(options.model), "--recipe", recipe, "--device", device,
        "--samples", "32", "--length", "128", "--held", "16", "--threads", "1", "--out", str(out), *how,
        *(() if data is None else ("--data", str(data))),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise CheckFailed(f"{name}: status {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
    return out


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return what is stored, by name."""
    return {name: stored.read() for name, stored in folder_weights(folder).items()}


def logits(model: nn.Module) -> torch.Tensor:
    """Return what ``model`` answers to fixed tokens."""
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(3, 259).view(2, -1)).logits.float()
    return found


def far(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the relative distance of two tensors."""
    return float((one.double() - other.double()).norm() / one.double().norm().clamp_min(1e-300))


def compared(one: Path, other: Path) -> dict[str, Any]:
    """Return what two quantized folders have in common."""
    stored = tensors(one), tensors(other)
    assert stored[0].keys() == stored[1].keys()
    differ = {n: (a, stored[1][n]) for n, a in stored[0].items() if a.view(-1).view(torch.uint8).ne(
        stored[1][n].view(-1).view(torch.uint8)).any()}  # fmt: skip
    models = nc.load(one), nc.load(other)
    pairs = [(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True)]
    return {
        "tensors": len(stored[0]),
        "differing": len(differ),
        "stored_bytes_differing": sum(int((a.view(-1).view(torch.uint8) != b.view(-1).view(torch.uint8)).sum())
                                      for a, b in differ.values()),
        "stored_bytes": sum(t.nbytes for t in stored[0].values()),
        "configs_equal": (one / "config.json").read_text() == (other / "config.json").read_text(),
        "weights_apart": max(far(a.detach(), b.detach()) for a, b in pairs),
        "logits_apart": far(*(logits(m) for m in models)),
        "calibration_equal": len({json.dumps(json.loads((f / "report.json").read_text())["calibration"])
                                  for f in (one, other)}) == 1,
    }  # fmt: skip


def reloaded(folder: Path) -> dict[str, Any]:
    """Return whether `transformers` loads a folder, and how far its logits are from ours."""
    with quiet():
        from transformers import AutoModelForCausalLM

    try:
        with quiet():
            theirs = AutoModelForCausalLM.from_pretrained(folder)
            a, b = logits(theirs), logits(nc.load(folder))
    except Exception as error:  # what it raises is its own affair, and a finding
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    return {"logits_equal": torch.equal(a, b), "logits_apart": far(b, a)}


def judged(folder: Path) -> dict[str, Any]:
    """Return what the report says of the loss."""
    report = json.loads((folder / "report.json").read_text())
    return {**report["judgement"], "seconds": report["seconds"], "samples": [s["after"] for s in report["samples"]]}


def tried(folders: dict[str, Path], how: tuple[str, ...]) -> dict[str, Any]:
    """Compare what both devices made."""
    one, other = folders["cpu"], list(folders.values())[-1]
    row: dict[str, Any] = {"options": list(how), **compared(one, other)}
    row |= {device: judged(folder) for device, folder in folders.items()}
    if "compressed-tensors" in how:
        row["transformers"] = reloaded(other)
    return row


def result(job: Future[Path]) -> Path | str:
    """Return the folder, or why there is none."""
    try:
        return job.result()
    except CheckFailed as error:
        return str(error)


def line(name: str, row: dict[str, Any]) -> str:
    """Return what to print of a row."""
    if "failed" in row:
        return f"{name}: FAILED: {row['failed']}"
    lost = [f"{row[d]['after'] - row[d]['before']:.4f}" for d in ("cpu", "cuda") if d in row]
    return (
        f"{name:36s} {row['differing']} of {row['tensors']} tensors differ, in {row['stored_bytes_differing']:,} of "
        f"{row['stored_bytes']:,} bytes; weights {row['weights_apart']:.2g} apart, "
        f"logits {row['logits_apart']:.2g}; nats lost {' and '.join(lost)}; "
        f"transformers: {row.get('transformers', 'not this layout')}"
    )


def main(arguments: list[str]) -> None:
    """Quantize, compare, print, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(os.environ.get("NARROWCAST_DATA", "."))
    parser.add_argument("--model", type=Path, default=here / "lm-stories260K" / "hf")
    parser.add_argument("--data", type=Path, default=here / "text" / "tinystories_val100.txt")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--together", type=int, default=3, help="processes at a time")
    parser.add_argument("--work", type=Path, default=Path("runs/ptq"))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if not (options.model / "config.json").is_file():
        raise InputError(f"--model {options.model}: no model folder; set NARROWCAST_DATA or name one")
    devices = tuple(dict.fromkeys(("cpu", options.device)))
    with ThreadPoolExecutor(options.together) as pool:
        jobs = [[pool.submit(quantized, options, r, how, d, options.data) for d in devices] for r, how in RUNS]
        own = result(pool.submit(quantized, options, "w4a16-gptq-g32", PLAIN, options.device, None))
        found = [[result(job) for job in lot] for lot in jobs]
    rows: dict[str, Any] = {}
    for (recipe, how), folders in zip(RUNS, found, strict=True):
        failed = [f for f in folders if isinstance(f, str)]
        made = {d: f for d, f in zip(devices, folders, strict=True) if isinstance(f, Path)}
        rows[f"{recipe} {how[1]}"] = {"failed": failed[0]} if failed else tried(made, how)
    alone: dict[str, Any] = {"failed": own} if isinstance(own, str) else judged(own)
    payload = {
        "versions": versions(),
        "device": options.device,
        "model": "stories260K",
        "recipes": rows,
        "own_text": alone,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out / f"ptq-{options.device}.json", (json.dumps(payload, indent=1) + "\n").encode())
    for name, row in rows.items():
        print(line(name, row))
    print("text of its own:", {k: v for k, v in alone.items() if k != "samples"})


if __name__ == "__main__":
    main(sys.argv[1:])

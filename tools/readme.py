"""Fill the marked places of README.md: ``./dev readme``.

``file-tree`` comes from the modules' own first lines, the tables from committed results: ``compare-table`` from a report
of ``narrowcast compare``, ``speed-table`` and ``conformance-table`` from the benchmarks. Whatever stands between ``<!-- name -->`` and ``<!-- /name -->`` is replaced.
"""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conformance_table import conformance_table
from result_tables import (
    attention_table,
    gemm_table,
    gptq_table,
    optimizer_table,
    passes_table,
    pretrain_table,
    ptq_table,
    quantized_table,
    step_table,
)

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "bench" / "results"
STUDIES = ROOT / "src" / "narrowcast" / "studies" / "results"
WIDTH = 110

# The floors, bottom up, then the side wing, then what stands beside them.
ORDER = [
    "errors",
    "names",
    "formats",
    "accumulate",
    "scaling",
    "transforms",
    "quantize",
    "ops",
    "kernels",
    "backend",
    "arithmetic",
    "nn",
    "optim",
    "comm",
    "recipes",
    "__init__",
    "io",
    "analysis",
    "testing",
    "health",
    "place",
    "train",
    "evaluate",
    "ptq",
    "qat",
    "allocate",
    "report",
    "compare",
    "studies",
    "cli",
    "__main__",
    "models",
    "metrics",
    "workloads",
]


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring, without its full stop."""
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.split("\n")[0].removesuffix(".")


def sources() -> list[Path]:
    """Return every source file, floor by floor."""
    package = ROOT / "src" / "narrowcast"

    def place(path: Path) -> tuple[int, bool, str]:
        top, *inner = path.relative_to(package).with_suffix("").parts
        floor = ORDER.index(top) if top in ORDER else len(ORDER)
        return floor, inner != ["__init__"], str(path)

    return sorted(package.rglob("*.py"), key=place)


def file_tree() -> str:
    """Return one line for each source file: its path below src/narrowcast and what it is."""
    package = ROOT / "src" / "narrowcast"
    names = {path: str(path.relative_to(package)) for path in sources()}
    column = max(map(len, names.values())) + 2
    lines = [f"{name:<{column}}{first_line(path)}" for path, name in names.items()]
    return "\n".join(["```", *(line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in lines), "```"])


def compare_table(report: dict[str, Any]) -> str:
    """Return the rows of a comparison as a Markdown table, with what it ran on below."""
    head = (
        "recipe", "validation loss", f"gap (noise ±{report['noise']['half_width']:.4f})", "verdict",
        "bits per operand", "kept for backward, MB", "8B stack on an H100, predicted ms",
    )  # fmt: skip
    rows = [
        (
            f"`{row['recipe']}`",
            cell(row["val_loss"], ".4f"),
            cell(row["gap"], "+.4f"),
            row["verdict"],
            cell(row["bits_operands"], ".2f"),
            cell(row["activation_bytes"], ".1f", 1e-6),
            cell(row["h100_8b_step_seconds"], ".0f", 1e3),
        )
        if not row["diverged"]
        else (f"`{row['recipe']}`", "", "", "diverged", "", "", "")
        for row in report["rows"]
    ]
    table = [head, ("---", *["---:"] * 2, "---", *["---:"] * 3), *rows]
    lines = [f"| {' | '.join(cells)} |" for cells in table]
    ran, training = report["versions"], report["training"]
    note = (
        f"`{report['command']}`: {report['model']['parameters']:,} parameters, {training['steps']} steps of "
        f"{training['tokens_per_step']:,} tokens; torch {ran['torch']}, {ran['cpu']}, {ran['threads']} threads, {ran['date']}."
    )
    return "\n".join([*lines, "", note])


SHOWN = (
    "round bfloat16", "round e4m3fn", "round e5m2", "round e2m1fn", "round int8", "round q3.12", "round e8m0", "round hif8",
    "round posit8_1", "round nf4", "round posit16_1", "round e4m3fn toward-zero", "round e4m3fn stochastic", "cast mxfp8_e4m3",
    "cast mxfp4", "cast mxint8", "cast nvfp4", "cast e4m3fn/128x128/fp32", "cast int4-g128", "cast bnb-nf4",
)  # fmt: skip


def speed_table(report: dict[str, Any]) -> str:
    """Return the times of casts as multiples of a clone as a Markdown table, peers last."""
    found, ran = report["results"][0], report["versions"]
    rows = [(f"`{n}`", f"{found['eager'][n]:.1f}", f"{found['compiled'][n]:.1f}") for n in SHOWN]
    rows += [(name, f"{ratio:.1f}", "") for name, ratio in found["peers"].items()]
    table = [("", "eager", "compiled"), ("---", "---:", "---:"), *rows]
    rows_, cols = found["shape"]
    note = (
        f"Time as a multiple of `x.clone()` on the same {rows_} x {cols} float32 tensor in the same run "
        f"({found['clone_ns_per_element']:.2f} ns per element); torch {ran['torch']}, {ran['cpu']}, {ran['threads']} threads, "
        f"{ran['date']}; all figures in `bench/results/casts-cpu.json`, written by `./dev bench casts`."
    )
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in table), "", note])


GPU_SHOWN = (
    "e4m3fn", "e4m3fn/tensor/fp32", "e4m3fn/row/fp32", "e4m3fn/1x128/fp32", "e4m3fn/128x128/fp32", "mxfp8_e4m3",
    "mxfp6_e2m3", "mxint8", "mxfp4", "nvfp4", "int4/1x32/fp32", "e4m3fn/row/fp32/stochastic", "int8/row/fp32/stochastic",
    "e4m3fn/1x32/e8m0/stochastic", "e2m1fn/1x32/e8m0/stochastic", "e2m1fn/1x16/e4m3fn+fp32/stochastic",
    *(f"e2m1fn/1x32/e8m0/nearest-even/hadamard{n}" for n in (16, 32, 128)),
    *(f"e2m1fn/1x32/e8m0/stochastic/hadamard{n}" for n in (16, 32, 128)),
    "e2m1fn/1x32/e8m0-four-thirds/stochastic/hadamard32-fresh", "e2m1fn/1x16/e4m3fn+fp32/stochastic/hadamard16-fixed",
    "hifloat8", "posit8_1/1x32/fp32-headroom22", "bnb-nf4", "lns8_8/row/fp32",
)  # fmt: skip


def gpu_cast_table(report: dict[str, Any]) -> str:
    """Return the share of a copy's bandwidth that the quantizing pass reaches, for each tensor size."""
    found, ran, bits = report["speed"], report["versions"], report["check"]
    sizes = [f"{rows} x {cols}" for rows, cols in (part["shape"] for part in found)]
    head = ("", *(cell for size in sizes for cell in (f"{size}, µs", "share of a copy")))
    rows = []
    for name in GPU_SHOWN:
        parts = [part["variants"][name] for part in found]
        rows.append((f"`{name}`", *(text for v in parts for text in (f"{v['us']:.0f}", f"{v['share']:.0%}"))))
    table = [head, ("---", *["---:"] * (2 * len(sizes))), *rows]
    every = ", ".join(f"`{name}`" for name, one in report["exhaustive"].items() if not one["bytes_differ"])
    note = (
        f"One pass from bfloat16 to packed codes and scales, beside a device copy that moves the same bytes, in one run: "
        f"{ran['gpu']}, torch {ran['torch']}, Triton {ran['triton']}, {ran['date']}. Maxima of whole tensors, where a scale needs "
        f"them, are a pass before it. Codes and scales of {bits['casts']} casts from three types equal the emulation's "
        f"({len(bits['differ'])} differences), and of {every} over all 2**32 float32 inputs. All figures in "
        "`bench/results/quantize-cuda.json`, written by `./dev bench quantize_gpu`."
    )
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in table), "", note])


def studies_table() -> str:
    """Return every committed study's verdict as a Markdown table, in the order of their sheets."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(STUDIES.glob("*.json"))]
    rows = [
        (f"{r['number']:02d}", f"{r['title']} ({r['paper'].split(',')[0]})", r["verdict"],
         f"{sum(c['holds'] for c in r['checks'] if c['claim'])} of {sum(c['claim'] for c in r['checks'])}")
        for r in found
    ]  # fmt: skip
    table = [("", "study", "verdict here", "checks of the claim that hold"), ("---", "---", "---", "---"), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in table)


def cell(value: float | None, spec: str, factor: float = 1.0) -> str:
    """Return ``value`` times ``factor`` as text, or nothing where there is none."""
    return "" if value is None else format(value * factor, spec)


def filled(text: str, name: str, content: str) -> str:
    """Return ``text`` with ``content`` between the markers called ``name``."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    assert pattern.search(text), f"README.md has no place marked {name}"
    return pattern.sub(lambda found: f"{found[1]}{content}\n{found[2]}", text)


#: place in README.md -> committed result, and the table that it becomes
TABLES: dict[str, tuple[Path, Callable[[dict[str, Any]], str]]] = {
    "compare-table": (RESULTS / "compare.json", compare_table),
    "quantized-table": (RESULTS / "quantized.json", quantized_table),
    "ptq-table": (RESULTS / "ptq.json", ptq_table),
    "gptq-table": (RESULTS / "gptq-cuda.json", gptq_table),
    "speed-table": (RESULTS / "casts-cpu.json", speed_table),
    "gpu-cast-table": (RESULTS / "quantize-cuda.json", gpu_cast_table),
    "step-table": (RESULTS / "train-cuda.json", step_table),
    "attention-table": (RESULTS / "attention-cuda.json", attention_table),
    "gemm-table": (RESULTS / "gemm-cuda.json", gemm_table),
    "passes-table": (RESULTS / "passes-cuda.json", passes_table),
    "pretrain-table": (RESULTS / "pretrain-cuda.json", pretrain_table),
    "optimizer-table": (RESULTS / "optimizer-cuda.json", optimizer_table),
    "conformance-table": (RESULTS / "conformance.json", conformance_table),
}


def readme() -> str:
    """Return README.md as it should be."""
    text = filled(README.read_text(encoding="utf-8"), "file-tree", file_tree())
    for name, (path, table) in TABLES.items():
        if path.is_file():
            text = filled(text, name, table(json.loads(path.read_text(encoding="utf-8"))))
    return filled(text, "studies-table", studies_table())


if __name__ == "__main__":
    README.write_text(readme(), encoding="utf-8")

"""The page of a quantized model: sizes, what it lost, where, what it writes now, and one sentence of advice."""

from collections import Counter
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from narrowcast.errors import InputError
from narrowcast.io import write_atomic
from narrowcast.io.files import sized
from narrowcast.io.weights import read_json
from narrowcast.metrics import perplexity
from narrowcast.ptq.plan import short
from narrowcast.report.document import Section, render
from narrowcast.report.tables import cell, table

KIND, VERSION = "narrowcast-quantize", 1
_WORST = 8  # layers in the table of those that hurt most
_DOTTED = {"mode": "lines+markers"}
_GOOD, _FAIR = 1.0, 5.0  # percent of perplexity: where advice changes
Report = dict[str, Any]


def headline(report: Report) -> str:
    """Return what came of it in one line."""
    before, after = report["bytes_before"], report["bytes_after"]
    shrunk = f"{sized(before)} became {sized(after)} ({before / max(after, 1):.1f}x smaller)"
    found = report["judgement"]
    if found is None:
        return f"{report['recipe']['name']}: {shrunk}; not judged"
    return (
        f"{report['recipe']['name']}: {shrunk}; perplexity {perplexity(found['before']):.3f} became "
        f"{perplexity(found['after']):.3f} ({_rise(report):+.1f} %)"
    )


def advice(report: Report) -> str:
    """Return one sentence: whether to use the result, and what to do otherwise."""
    rise = _rise(report)
    if rise is None:
        return (
            "What this costs in quality was not measured here, because no text was judged: give one with --data, or "
            "compare both folders with 'narrowcast evaluate'."
        )
    if rise < _GOOD:
        tokens = report["judgement"]["tokens"]
        return f"Use it: on {tokens:,} tokens that it was not calibrated on, perplexity changed by {rise:+.1f} %."
    worst = worst_layers(report)
    names = " and ".join(_short(row["name"]) for row in worst[:2])
    if rise < _FAIR:
        return f"Usable where {rise:.1f} % of perplexity do not matter; {names} kept wide (--keep-wide) give some back."
    better = _better(report)
    return f"Perplexity rose by {rise:.1f} %: {better}."


def _better(report: Report) -> str:
    """Return what to try instead of a recipe that loses much."""
    from narrowcast.ptq.catalogue import recipes

    known = recipes()
    chosen = known.get(report["recipe"]["name"])
    if chosen is not None and chosen.kv is not None:
        wide = next((r.name for r in known.values() if r == replace(chosen, name=r.name, summary=r.summary,
                     paper=r.paper, kv=None)), "a recipe that narrows weights alone")  # fmt: skip
        return f"leave cached keys and values wide ({wide})"
    if chosen is not None and chosen.scheme.activation is not None and chosen.scheme.activation.format.bits < 8:
        return "leave the inputs wide (w4a16-gptq-g32), or take 8 bits (w8a8-fp8)"
    same = [r.name for r in known.values() if chosen and r.scheme.weight == chosen.scheme.weight and r.solver]
    if chosen is not None and chosen.solver is None and same:
        return f"take {same[0]}, which repairs roundings by calibration, or 8 bits (w8a8-fp8)"
    if chosen is not None and chosen.scheme.weight.tile.cols > 32:
        return "take smaller groups (w4a16-gptq-g32), or 8 bits (w8a8-fp8)"
    return "take 8 bits (w8a8-fp8), or train with the narrow weights (narrowcast.qat)"


def remarks(report: Report) -> list[str]:
    """Return what went otherwise than asked, in sentences: factors that failed, silent inputs, too little text."""
    layers = report["layers"]
    notes = Counter(note for row in layers for note in row["notes"] if note.startswith(("H ", "no calibration row")))
    found = [f"{count} of {len(layers)} matrices: {note}" for note, count in notes.items()]
    if report["silent"]:
        found.append(f"input channels that were zero on all calibration rows, harmless here: {_silent(report)}")
    short_of = [row for row in layers if row["output_error"] is not None and 0 < row["rows"] < row["shape"][1]]
    if short_of:
        worst = min(short_of, key=lambda row: row["rows"] / row["shape"][1])
        found.append(
            f"{len(short_of)} of {len(layers)} matrices met fewer calibration rows than they have columns (first "
            f"{_short(worst['name'])}: {worst['rows']:,} for {worst['shape'][1]:,}); give more text"
        )
    return found


def worst_layers(report: Report) -> list[dict[str, Any]]:
    """Return the layers that hurt most: by the error of their outputs where rows were seen, else by SQNR."""
    rows = report["layers"]
    return sorted(rows, key=_hurt, reverse=True)[:_WORST]


def _hurt(row: dict[str, Any]) -> float:
    if row["output_error"] is not None:
        return float(row["output_error"])
    return 0.0 if row["sqnr_db"] is None else float(10 ** (-row["sqnr_db"] / 10))


def quantize_page(report: Report) -> str:
    """Return the page of a report (what ``report.json`` holds)."""
    sections = (
        Section("Size and speed", _speed_text(report), (_sizes(report),)),
        Section("What it lost", _lost_text(report), (_judgement(report),)),
        Section("What it writes", _samples_text(report), html=_samples(report)),
        Section("Where it is lost", (_WHERE, *remarks(report)), (_worst(report),), _plots(report)),
        Section("What became of every parameter", tuple(report["plan"]["notes"]), (_plan(report),)),
        Section("Facts", tables=(_facts(report),)),
    )
    return render("narrowcast quantize", headline(report), (advice(report),), sections)


def load_quantized_report(path: Path) -> Report:
    """Return the report in ``path``; InputError where it is missing, not JSON, or not of this kind."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected the report.json of 'narrowcast quantize'")
    found = read_json(path, "a report")
    if not isinstance(found, dict) or found.get("kind") != KIND or found.get("version") != VERSION:
        raise InputError(f"{path}: no report of this version of 'narrowcast quantize'; run it again")
    try:
        quantize_page(found)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"{path}: damaged ({type(error).__name__}: {error}); run 'narrowcast quantize' again"
        ) from None
    return found


def write_quantized(report: Report, folder: Path) -> Path:
    """Write ``folder/report.html`` atomically and return its path."""
    path = folder / "report.html"
    write_atomic(path, quantize_page(report).encode())
    return path


_WHERE = (
    "Weight SQNR is what rounding did to the weights alone; output error is the relative squared error of the layer's "
    "outputs on the calibration rows, which is what the methods make small. The drift is that of the hidden states "
    "behind each block on text that was set apart: it adds up."
)


def _rise(report: Report) -> float | None:
    found = report["judgement"]
    return None if found is None else 100 * (perplexity(found["after"] - found["before"]) - 1)


def _speed_text(report: Report) -> tuple[str, ...]:
    speed = report["plan"]["speed"]
    return (
        f"Speeds are predicted for {speed['gpu']} by a roofline (a lower bound on time: attention, norms and the KV "
        "cache are left out) for a model stored in 16 bits before, and as stored now after. Sizes count scales.",
    )


def _sizes(report: Report) -> dict[str, Any]:
    speed = report["plan"]["speed"]
    one, other = speed["before"], speed["after"]
    rows = [
        ["weights in the files", sized(report["bytes_before"]), sized(report["bytes_after"])],
        *(
            [["keys and values cached, a token", *map(sized, cached)]]
            if (cached := report["plan"].get("cached_bytes"))
            else []
        ),
        [f"prefill of {one['prompt']:,} tokens, ms (predicted)", one["prefill"] * 1e3, other["prefill"] * 1e3],
        ["decode of a token, ms (predicted)", one["decode"] * 1e3, other["decode"] * 1e3],
    ]
    return {"title": "", "columns": ["", "before", "after"], "rows": rows}


def _lost_text(report: Report) -> tuple[str, ...]:
    found = report["judgement"]
    if found is None:
        return (f"Nothing was judged: {report['calibration']['source']}.",)
    return (
        f"Judged on {found['tokens']:,} tokens that were not calibrated on, of: {report['calibration']['source']}.",
    )


def _judgement(report: Report) -> dict[str, Any]:
    found = report["judgement"]
    rows: list[list[Any]] = []
    if found is not None:
        rows = [
            ["loss, nats per token", found["before"], found["after"]],
            ["perplexity", perplexity(found["before"]), perplexity(found["after"])],
            ["KL divergence from the original, nats", None, found["divergence"]],
            ["same likeliest token, %", None, 100 * found["agreement"]],
        ]
    return {"title": "", "columns": ["", "before", "after"], "rows": rows}


def _samples_text(report: Report) -> tuple[str, ...]:
    if report["samples"]:
        return ("The likeliest token each time, from the same beginnings; what no longer agrees is marked.",)
    return (report.get("no_samples") or "No samples were written.",)


def _samples(report: Report) -> str:
    if not report["samples"]:
        return ""
    rows = [[cell(s["prompt"]), cell(s["before"]), _marked(s["after"], s["same"])] for s in report["samples"]]
    return table(["beginning", "before", "after"], rows, "data")


def _marked(text: str, same: int) -> str:
    return f"<td>{escape(text[:same])}<mark>{escape(text[same:])}</mark></td>"


def _worst(report: Report) -> dict[str, Any]:
    rows = [
        [_short(r["name"]), f"{r['shape'][0]} x {r['shape'][1]}", r["sqnr_db"], r["output_error"], r["rows"],
         "; ".join(r["notes"])]
        for r in worst_layers(report)
    ]  # fmt: skip
    columns = ["layer", "shape", "weight SQNR, dB", "output error", "calibration rows", "notes"]
    return {"title": "The layers that hurt most", "columns": columns, "rows": rows}


def _plots(report: Report) -> tuple[dict[str, Any], ...]:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in report["layers"]:
        kinds.setdefault(_kind(row["name"]), []).append(row)
    plots = []
    for title, key, y, log in (
        ("Weight SQNR by layer", "sqnr_db", "dB", False),
        ("Output error by layer", "output_error", "relative squared error", True),
    ):
        series = [
            {"name": kind, "x": [_place(r["name"]) for r in known], "y": [r[key] for r in known], **_DOTTED}
            for kind, rows in kinds.items()
            if (known := [r for r in rows if r[key] is not None and "[" not in r["name"]])
        ]  # fmt: skip
        if series:
            plots.append({"title": title, "x": "block", "y": y, "log_y": log, "series": series})
    drift = [(i, d["drift"]) for i, d in enumerate(report["drift"]) if d["drift"]]
    if len(drift) > 1:
        line = {"name": "drift", "x": [i for i, _ in drift], "y": [d for _, d in drift], **_DOTTED}
        plots.append({"title": "Drift of the hidden states", "x": "block", "y": "relative squared error", "log_y": True,
                      "series": [line]})  # fmt: skip
    return tuple(plots)


def _place(name: str) -> int:
    return next((int(part) for part in name.split(".") if part.isdigit()), 0)


def _kind(name: str) -> str:
    parts = [part for part in name.removesuffix(".weight").split(".") if not part.isdigit()]
    return parts[-1].split("[")[0]


def _short(name: str) -> str:
    return name.removesuffix(".weight").removeprefix("model.")


def _plan(report: Report) -> dict[str, Any]:
    columns = ["parameter", "shape", "became", "before", "after", "runs as; why"]
    rows = []
    for r in report["plan"]["folded"]:
        became = short(r["cast"]) if r["became"] == "narrow" else "wide"
        notes = "; ".join(text for text in (r["kernel"], r["why"], r["group"] and f"shares with {r['group']}") if text)
        rows.append([r["name"], "x".join(map(str, r["shape"])), became, sized(r["before"]), sized(r["after"]), notes])
    return {"title": "", "columns": columns, "rows": rows}


def _facts(report: Report) -> dict[str, Any]:
    memory, calibration, model = report["memory"], report["calibration"], report["model"]
    weights = f"{sized(memory['weights_peak'])} of {sized(memory['model_bytes'])}, as float32"
    process = f"{sized(memory['process_peak'])}, {sized(memory['process_before'])} before it began"
    rows = [
        ["command", report["command"] or "(called from Python)"],
        ["model", f"{model['name']} ({model['type']}), {model['parameters']:,} parameters"],
        ["recipe", f"{report['recipe']['name']}: {report['recipe']['summary']} ({report['recipe']['paper']})"],
        ["layout", report["layout"]],
        ["calibration", f"{calibration['source']}: {calibration['tokens']:,} tokens, seed {calibration['seed']}"],
        ["most weights in memory at once", weights],
        ["most hidden states in memory at once", sized(memory["activations_peak"])],
        ["peak memory of the process", process],
        ["input channels that were never active", _silent(report)],
        ["seconds", report["seconds"]],
        ["blocks found finished on resuming", report["resumed_after"]],
    ]  # fmt: skip
    rows += [[key, value] for key, value in report["versions"].items()]
    return {"title": "", "columns": ["", ""], "rows": rows}


def _silent(report: Report) -> str:
    if not report["silent"]:
        return "none"
    total = sum(report["silent"].values())
    return f"{total:,} in {len(report['silent'])} layers, first {_short(next(iter(report['silent'])))}"

"""Study 67: a scale for either sign (AFPQ): 4- and 3-bit weights of a language model, under rounding and under GPTQ."""

import statistics
from dataclasses import replace
from typing import Any

import torch

from narrowcast.formats import format
from narrowcast.formats.codebook import Codebook
from narrowcast.formats.format import Format
from narrowcast.ptq import Solver
from narrowcast.ptq.recipe import PtqRecipe, Scheme
from narrowcast.quantize import Cast, cast
from narrowcast.studies.quantized_language import Judge, judge
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal, within

#: quantiles of the normal for 3 bits, as the paper's code has them
NF3 = Codebook("nf3", (-1.0, -0.5350227, -0.2469314, 0.0, 0.1833375, 0.3819939, 0.6229857, 1.0))
FORMATS: dict[str, Format] = {
    "FP4": format("e2m1fn"), "NF4": format("nf4"), "INT4": format("int4"),
    "FP3": format("e2m0_none"), "NF3": NF3, "INT3": format("int3"),
}  # fmt: skip
GROUPS = ("row", "1x128", "1x64", "1x32")
METHODS = ("RTN", "GPTQ")
Key = tuple[str, str, str]


def cast_of(name: str, group: str, by_sign: bool) -> Cast:
    """Return a weight's cast: groups along the row under float16 scales, one or two."""
    tile = group if group == "row" else f"{group}+pad"
    return replace(cast(f"int4/{tile}/float16{'-signs' if by_sign else ''}"), format=FORMATS[name])


def run(setting: Setting) -> Outcome:
    """Measure."""
    j = judge(setting)
    calibration = j.own_text(4, 0, 16) if setting.quick else j.own_text(64)
    names = ("FP4", "NF3") if setting.quick else tuple(FORMATS)
    groups = ("1x32",) if setting.quick else GROUPS
    found: dict[Key, tuple[float, float]] = {}
    for name in names:
        for group in groups:
            for method in METHODS:
                pair = [j.perplexity(_recipe(name, group, s, method), calibration) for s in (False, True)]
                found[name, group, method] = (pair[0], pair[1])
                setting.note(f"{name}, {group}, {method}: {pair[0]:.4f}, by sign {pair[1]:.4f}")
    ratios = _ratios(setting)
    checks = [*_golden(ratios), *_claims(j, found)]
    return Outcome(tuple(checks), (_table(j, found), _ratio_table(ratios)), (_plot(j, found),), _NOTES)


def _recipe(name: str, group: str, by_sign: bool, method: str) -> PtqRecipe:
    solver = Solver() if method == "GPTQ" else None
    return PtqRecipe(f"{name} {group} {method}", "", "", Scheme(cast_of(name, group, by_sign)), solver=solver)


# --- golden checks ---


def _ratios(setting: Setting) -> dict[tuple[str, str], float]:
    """Return mean square error by sign over plain on normal weights."""
    g = torch.Generator().manual_seed(setting.seed)
    rows = 2048 if setting.quick else 16384
    found = {}
    for group in GROUPS[1:]:
        x = torch.randn(rows, int(group[2:]), generator=g)
        for name in FORMATS:
            by_sign, plain = ((cast_of(name, group, s).apply(x) - x).square().mean() for s in (True, False))
            found[name, group] = float(by_sign / plain)
    return found


def _golden(ratios: dict[tuple[str, str], float]) -> list[Check]:
    x = torch.tensor([[-1.0, 0.0, 0.5, 6.0]])
    even = torch.tensor([[-3.0, 0.7, -1.1, 3.0]])
    by_sign, plain = (
        replace(cast_of("FP4", "row", s), scale=cast(f"int4/row/fp32{t}").scale)
        for s, t in ((True, "-signs"), (False, ""))
    )
    low = float(by_sign.apply(torch.tensor([[-0.6, 0.1, 6.0]]))[0, 0])
    known = {("FP4", "1x32"): 0.8675, ("FP4", "1x128"): 0.9425, ("FP3", "1x32"): 0.831, ("FP3", "1x128"): 0.8985}
    off = max(abs(ratios[key] - value) for key, value in known.items())
    return [
        equal("[-1, 0, 0.5, 6] in FP4 by sign: values that differ", int((by_sign.apply(x) != x).sum()), 0, claim=False),
        within("[-0.6, 0.1, 6] in FP4 by sign: first value", low, -0.6, 1e-6, claim=False),
        equal(
            "a group with equal ends: values unlike one scale's",
            int((by_sign.apply(even) != plain.apply(even)).sum()),
            0,
            claim=False,
        ),
        at_most("normal weights, FP4 and FP3: furthest from the known error ratios", off, 0.02, claim=False),
    ]


# --- the claim ---


def _claims(j: Judge, found: dict[Key, tuple[float, float]]) -> list[Check]:
    floats = {key: pair for key, pair in found.items() if not key[0].startswith("INT")}
    better = statistics.fmean(float(b <= a) for a, b in floats.values())
    checks = [at_least("float and codebook cells where two scales are no worse, share", better, 0.8)]
    for bits in ("3", "4"):
        gains = [
            1 - (b - j.wide.perplexity) / (a - j.wide.perplexity)
            for key, (a, b) in floats.items()
            if key[0].endswith(bits)
        ]
        if gains:
            name = f"{bits} bits: share of the perplexity lost that a second scale wins back, mean"
            checks.append(at_least(name, statistics.fmean(gains), 0.0))
    small = [
        1 - (b - j.wide.perplexity) / (a - j.wide.perplexity)
        for (n, g, _), (a, b) in floats.items()
        if g == "1x32" and n.endswith("3")
    ]
    if small:
        checks.append(at_least("3 bits in groups of 32: the same", statistics.fmean(small), 0.0))
    return checks


def _table(j: Judge, found: dict[Key, tuple[float, float]]) -> dict[str, Any]:
    rows = []
    for (name, group, method), (a, b) in found.items():
        bits = [round(cast_of(name, group, s).bits_per_element((64, 64)), 3) for s in (False, True)]
        rows.append([name, group, method, round(a, 4), round(b, 4), "yes" if b <= a else "no", *bits])
    columns = ["format", "group", "method", "one scale", "two scales", "no worse", "bits, one", "bits, two"]
    return {"title": f"Perplexity, weights alone (float32 {j.wide.perplexity:.4f})", "columns": columns, "rows": rows}


def _ratio_table(ratios: dict[tuple[str, str], float]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for name, _ in ratios))
    rows = [[name, *(round(ratios[name, group], 3) for group in GROUPS[1:])] for name in names]
    return {
        "title": "Normal weights: squared error with two scales over one",
        "columns": ["format", *GROUPS[1:]],
        "rows": rows,
    }


def _plot(j: Judge, found: dict[Key, tuple[float, float]]) -> dict[str, Any]:
    words = [f"{n} {g} {m}" for n, g, m in found]
    series = [
        {"name": label, "x": words, "y": [pair[i] - j.wide.perplexity for pair in found.values()], "mode": "markers"}
        for i, label in enumerate(("one scale", "two scales"))
    ]
    return {
        "title": "Perplexity lost",
        "series": series,
        "x": "cell",
        "y": "perplexity above float32",
        "wide": True,
        "log_y": True,
    }


_NOTES = (
    "Scales are float16, from maxima. Two scales cost 16 more bits per group than one: the table has the bits. The paper compares "
    "with integers that store a zero point, which cost as much.",
    "The model is 64 wide (172 in the second matrix of each MLP), so rows and groups of 64 and 128 are the same in most layers.",
    "Ties go to the even code here; the paper's code sends them to the more negative one.",
    "Inputs stay wide. Calibration: 64 texts that the model wrote itself. GPTQ settles both scales before the first column; the "
    "paper's code takes them from the updated weights of each group.",
    "Not here: the kernel that multiplies by either scale, and models of 7 to 70 billion parameters.",
)

STUDY = Study(
    number=67,
    title="AFPQ: a scale for either sign",
    paper="Zhang et al. 2023, AFPQ: Asymmetric Floating Point Quantization for LLMs",
    claim="Weights are lopsided within a group, so float and codebook formats with one scale per sign lose less, most of all at 3 "
    "bits and in small groups.",
    baseline="one scale per group",
    treatment="a scale for the positive and one for the negative values of a group",
    measure="perplexity of a small language model with 3- and 4-bit weights, rounded to nearest and by GPTQ",
    expected="two scales no worse in at least 80 % of the cells, and better on average at 3 bits",
    run=run,
    needs=("data",),
)

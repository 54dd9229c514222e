"""Study 33: at which crest factor integers beat floats, block by block: theory, real tensors, predictions, training."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from narrowcast.analysis.crest import E8M0, Fit, crest_factors, crossover, float_qsnr, integer_qsnr, spread
from narrowcast.analysis.distributions import NORMAL
from narrowcast.analysis.format_error import cast_error
from narrowcast.formats import Minifloat, format
from narrowcast.scaling import ROW, tile
from narrowcast.studies.block_formats import CASTS, Tensors, decibels_of, divergences, real_tensors, train_all
from narrowcast.studies.small_training import Spread
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, within
from narrowcast.transforms import Hadamard

PAIRS = (("MXINT8", "MXFP8"), ("MXINT6", "MXFP6"), ("MXINT4", "MXFP4"), ("NVINT4", "NVFP4"))
#: which of each pair the paper found better, plainly cast and rotated
PAPER = {
    ("MXINT8", "MXFP8"): ("MXINT8", "MXINT8"), ("MXINT6", "MXFP6"): ("MXFP6", "MXFP6"),
    ("MXINT4", "MXFP4"): ("MXFP4", "MXFP4"), ("NVINT4", "NVFP4"): ("NVFP4", "NVINT4"),
}  # fmt: skip
_FITS = {"MX": E8M0, "NV": Fit(1.05, 16)}


def run(setting: Setting) -> Outcome:
    """Measure."""
    checks = [*_crossovers(), *_gaussian(setting), _bfloat16_share()]
    tensors = real_tensors(setting)
    found = {group: decibels_of(members) for group, members in tensors.items()}
    divergence = divergences(setting)
    training = train_all(setting)
    checks += _tensor_checks(found) + _divergence_checks(divergence) + _training_checks(training)
    tables = (_tensor_table(found), _crest_table(tensors), _divergence_table(divergence), _training_table(training))
    plots = (_law_plot(tensors, found, ("MXINT8", "MXFP8")), _law_plot(tensors, found, ("NVINT4", "NVFP4")))
    return Outcome(tuple(checks), tables, plots, _NOTES)


# --- golden checks: the theory, and the normal distribution ---


def published(bits: int, crest: float, fit: Fit) -> float:
    """Return the integers' law as the paper rounds it: 4.78 + 6.02 b, which gives b bits 2**(b - 1) steps."""
    return integer_qsnr(2 ** (bits - 1), crest, fit) - (4.771 + 6.0206 * bits) + (4.78 + 6.02 * bits)


def _crossovers() -> list[Check]:
    rows = [
        ("INT8, FP8", 8, "e4m3fn", E8M0, 7.546, 31.86), ("INT6, FP6", 6, "e2m3fn", E8M0, 1.959, 31.54),
        ("INT4, FP4", 4, "e2m1fn", E8M0, 2.042, 19.14), ("NVINT4, NVFP4", 4, "e2m1fn", Fit(1.05, 16), 2.391, 21.14),
    ]  # fmt: skip
    checks = []
    for name, bits, element, fit, crest, decibels in rows:
        floats = partial(float_qsnr, _minifloat(element), fit=fit)
        found = crossover(partial(published, bits, fit=fit), floats) or (math.nan, math.nan)
        checks.append(within(f"crossover of {name}, crest factor", found[0], crest, 1e-3, claim=False))
        checks.append(within(f"crossover of {name}, dB", found[1], decibels, 6e-3, claim=False))
    return checks


def _minifloat(name: str) -> Minifloat:
    found = format(name)
    assert isinstance(found, Minifloat)
    return found


def _gaussian(setting: Setting) -> list[Check]:
    shape = (64, 1024) if setting.quick else (512, 4096)
    x = NORMAL.sample(shape, setting.seed)
    checks = []
    for block, crest in ((32, 2.366), (16, 2.110)):
        mean = float(crest_factors(x, tile(f"1x{block}")).mean())
        checks.append(within(f"mean crest factor of N(0,1), blocks of {block}", mean, crest, 0.02, claim=False))
    expected = {"MXINT8": 41.61, "MXINT6": 29.43, "MXINT4": 16.84, "MXFP4": 18.76, "NVFP4": 20.44, "NVINT4": 21.28}
    for name, decibels in expected.items():
        found = cast_error(CASTS[name], shape=shape, seed=setting.seed).sqnr
        checks.append(within(f"{name} on N(0,1), dB", found, decibels, 0.1, claim=False))
    return checks


def _bfloat16_share() -> Check:
    """How often x / (x / 127) is 128 in bfloat16: why the lone negative code must not be used."""
    x = NORMAL.sample((1 << 20,)).abs().bfloat16()
    share = float(((x / (x / 127)).float().round() == 128).float().mean())
    return within("share of bfloat16 values whose own scale makes them 128", share, 0.1682, 0.002, claim=False)


# --- real tensors ---


def _gap(found: dict[str, list[tuple[float, float]]], pair: tuple[str, str], rotated: int) -> tuple[float, float]:
    """Return (mean lead of the integers in dB, share of tensors on which they lead)."""
    leads = [i[rotated] - f[rotated] for i, f in zip(found[pair[0]], found[pair[1]], strict=True)]
    return sum(leads) / len(leads), sum(lead > 0 for lead in leads) / len(leads)


def _tensor_checks(found: dict[str, dict[str, list[tuple[float, float]]]]) -> list[Check]:
    pooled = {name: [pair for group in found.values() for pair in group[name]] for name in CASTS}
    checks = []
    for pair in PAIRS:
        for rotated, how in enumerate(("as they are", "rotated")):
            lead = _gap(pooled, pair, rotated)[0]
            better = PAPER[pair][rotated] == pair[0]
            name = f"real tensors {how}: {pair[0]} over {pair[1]}, dB"
            checks.append(at_least(name, lead, 0.0) if better else at_most(name, lead, 0.0))
    gain = sum(rotated - plain for plain, rotated in pooled["NVFP4"]) / len(pooled["NVFP4"])
    return [*checks, at_most("real tensors: what rotation gains NVFP4, dB", gain, 0.0)]


def _tensor_table(found: dict[str, dict[str, list[tuple[float, float]]]]) -> dict[str, Any]:
    columns = ["tensors", "pair", "lead of the integers, dB", "leads on", "rotated: lead, dB", "rotated: leads on"]
    rows = []
    for group, at in found.items():
        for pair in PAIRS:
            cells = [cell for rotated in (0, 1) for cell in _gap(at, pair, rotated)]
            shown = [f"{cells[0]:+.2f}", f"{cells[1]:.0%}", f"{cells[2]:+.2f}", f"{cells[3]:.0%}"]
            rows.append([f"{group} ({len(at[pair[0]])})", f"{pair[0]} or {pair[1]}", *shown])
    return {"title": "SQNR of real tensors", "columns": columns, "rows": rows}


def _crest_table(tensors: Tensors) -> dict[str, Any]:
    rows = []
    for group, members in tensors.items():
        for label, size, rotation in _CREST_TILES:
            crests = [_crests(x, size, rotation) for x in members.values()]
            found = spread(torch.cat(crests))
            assert found is not None
            rows.append([group, label, *(f"{v:.2f}" for v in (found.q1, found.median, found.q3, found.max))])
    columns = ["tensors", "block", "lower quartile", "median", "upper quartile", "largest"]
    return {"title": "Crest factors of real tensors", "columns": columns, "rows": rows}


_CREST_TILES = (
    ("row", ROW, 0), ("32", tile("1x32+pad"), 0), ("32, rotated", tile("1x32+pad"), 32), ("16", tile("1x16+pad"), 0),
    ("16, rotated", tile("1x16+pad"), 16),
)  # fmt: skip


def _crests(x: Tensor, size: Any, rotation: int) -> Tensor:
    if rotation:
        x = Hadamard(rotation, "fixed").forward(torch.nn.functional.pad(x.float(), (0, -x.shape[-1] % rotation)))
    return crest_factors(x, size)


def _law_plot(tensors: Tensors, found: dict[str, Any], pair: tuple[str, str]) -> dict[str, Any]:
    """Draw the closed forms and where each real tensor lies."""
    fit, size = _FITS[pair[0][:2]], CASTS[pair[0]].tile
    grid = [k for i in range(60) if (k := 1.3 * 1.03**i) <= size.cols**0.5]  # no block's crest factor is larger
    laws = (
        partial(integer_qsnr, CASTS[pair[0]].format.max),
        partial(float_qsnr, _minifloat(CASTS[pair[1]].format.name)),
    )
    series = [{"name": f"{name}, theory", "x": grid, "y": [law(k, fit=fit) for k in grid]}
              for name, law in zip(pair, laws, strict=True)]  # fmt: skip
    for name in pair:
        x = [float(crest_factors(t, size).median()) for members in tensors.values() for t in members.values()]
        y = [decibels[0] for group in found.values() for decibels in group[name]]
        series.append({"name": f"{name}, measured", "x": x, "y": y, "mode": "markers"})
    axes = {"x": f"crest factor, blocks of {size.cols} (a tensor's median)", "y": "SQNR, dB", "log_x": True}
    return {"title": f"{pair[0]} or {pair[1]}: theory, and each real tensor", "series": series, **axes}


# --- direct cast of a language model ---


def _divergence_checks(found: dict[str, tuple[float, float]]) -> list[Check]:
    checks = []
    for pair in PAIRS:
        for rotated, how in enumerate(("as it is", "rotated")):
            ratio = found[pair[0]][rotated] / found[pair[1]][rotated]
            name = f"language model {how}: KL of {pair[0]} over that of {pair[1]}"
            checks.append((at_most if PAPER[pair][rotated] == pair[0] else at_least)(name, ratio, 1.0))
    return checks


def _divergence_table(found: dict[str, tuple[float, float]]) -> dict[str, Any]:
    rows = [[name, f"{plain * 1e6:,.0f}", f"{rotated * 1e6:,.0f}"] for name, (plain, rotated) in found.items()]
    title = "Language model cast directly: KL divergence from float32 x 1e6, its 25 likeliest tokens"
    return {"title": title, "columns": ["format of weights and inputs", "as it is", "rotated"], "rows": rows}


# --- training ---


def _training_checks(found: dict[str, Spread]) -> list[Check]:
    base, full = found["bf16"], found["INT8 by bfloat16 scales, down to -128"]
    symmetric = found["INT8 by bfloat16 scales, symmetric"]
    noise = max(2 * base.deviation, 1e-3)
    gap, range_gap = abs(found["MXINT8"].mean - base.mean), symmetric.mean - full.mean
    return [
        at_most("training: MXINT8 off bf16, nats per token (bound: two standard deviations of bf16)", gap, noise),
        at_most("training: symmetric over asymmetric INT8, nats per token (same bound)", range_gap, noise),
    ]


def _training_table(found: dict[str, Spread]) -> dict[str, Any]:
    rows = [[s.name, f"{s.mean:.4f}", f"{s.deviation:.4f}", s.listed] for s in found.values()]
    columns = ["recipe", "mean", "standard deviation", "by seed"]
    return {"title": "Training a small Llama: final validation loss, nats per token", "columns": columns, "rows": rows}


_NOTES = (
    "Real tensors are a 260,032-parameter Llama trained on TinyStories (weights, and inputs of its linear layers on "
    "validation text) and a ResNet20 (CIFAR-10); the paper's are LLMs of 0.6 to 235 billion parameters.",
    "Blocks of 32 cannot have a crest factor above the square root of 32, 5.66: below the crossover of INT8 and FP8, "
    "7.55. So under these laws MXINT8 wins on any block of 32, and the crossover matters to wider tiles only.",
    "NVINT4 beats NVFP4 here before any rotation, but not on the language model's inputs: small models' weights have no "
    "outliers, and the crest factors of most blocks lie below the crossover as they are.",
    "Divergence is over float32's 25 likeliest tokens, both distributions renormalised over them; rotation is a "
    "Hadamard matrix of the block's size after fixed random signs; axes that no block divides are filled with zeros.",
    "Training: a Llama of half a million parameters, 120 updates of 512 tokens of tiny Shakespeare, three seeds. In "
    "float32 arithmetic with power-of-two scales no value reaches -128 and the two INT8 ranges are the same bits; the "
    "pair here divides in bfloat16, as the paper's ablation with bfloat16 scales does.",
    "Not tried here: the paper's model sizes, and gate counts (a cost model is a study of its own).",
)

STUDY = Study(
    number=33,
    title="Integers or floats in small blocks",
    paper="Chen et al. 2025, INT v.s. FP: A Comprehensive Study of Fine-Grained Low-bit Quantization Formats "
    "(arXiv 2510.25602)",
    claim="In blocks of 32 the crest factor is low enough for MXINT8 to beat MXFP8; at 6 and 4 bits floats win, but "
    "NVINT4 beats NVFP4 once outliers are rotated away.",
    baseline="float block formats: MXFP8, MXFP6, MXFP4, NVFP4",
    treatment="integer block formats of the same width and scales: MXINT8, MXINT6, MXINT4, NVINT4",
    measure="SQNR of real tensors, KL divergence of a language model cast directly, validation loss of training",
    expected="the winner of each pair as in the paper, as it is and rotated; MXINT8 trains within the noise of bf16",
    run=run,
    needs=("data",),
)

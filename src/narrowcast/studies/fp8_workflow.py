"""Study 22: post-training FP8 in three formats on eight networks, products alone or everything, against INT8."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.formats import format
from narrowcast.models.outliers import inject_outliers
from narrowcast.ptq.operators import recalibrate
from narrowcast.ptq.tuning import Tuned, tune
from narrowcast.quantize import cast
from narrowcast.studies.fp8_zoo import FORMATS, Member, activations, language_member, quantized, zoo
from narrowcast.studies.quantized_language import judge, weights_changed
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal

_ALLOWED = 0.01
_SINGLE = ("E5M2", "E4M3", "E3M4", "INT8")
Key = tuple[str, str, str]  # member, format, scheme


def run(setting: Setting) -> Outcome:
    """Measure."""
    members = zoo(setting)
    wide = {m.name: m.score(m.model) for m in members}
    found: dict[Key, float] = {}
    for m in members:
        for name in FORMATS:
            for scheme in ("standard", "extended"):
                found[m.name, name, scheme] = m.score(quantized(m, name, scheme == "extended"))
        shares = ", ".join(f"{n} {found[m.name, n, 'standard'] / wide[m.name]:.4f}" for n in _SINGLE)
        setting.note(f"{m.name} ({wide[m.name]:.3f}): share kept {shares}")
    norms = _recalibrated(members, setting)
    tuned = {m.name: _tuned(m) for m in members}
    errors = _activation_errors(members)
    planted = _planted(setting)
    checks = [*_golden(members), *_claims(found, wide, norms, tuned, errors, planted)]
    tables = (_table(found, wide), _rates(found, wide), _tuned_table(tuned, wide), _error_table(errors, planted))
    return Outcome(tuple(checks), tables, (_plot(found, wide),), _NOTES)


# --- what is measured ---


def _recalibrated(members: list[Member], setting: Setting) -> dict[str, tuple[float, float, float]]:
    """Return, by member with batch normalisation, scores: wide, extended in E4M3, the same with its norms calibrated."""
    rows = {}
    for m in members:
        if not any(isinstance(x, nn.BatchNorm2d) for x in m.model.modules()):
            continue
        changed = quantized(m, "E4M3", extended=True)
        before = m.score(changed)
        recalibrate(changed, m.forwards(changed))
        rows[m.name] = (m.score(m.model), before, m.score(changed))
        setting.note(f"{m.name}: {rows[m.name][1]:.2f}, with its norms calibrated {rows[m.name][2]:.2f}")
    return rows


def _tuned(m: Member) -> Tuned:
    first = "E4M3" if m.language else "E3M4"
    ways = [
        (f"{first}, static", lambda w: quantized(m, first, widened=w)),
        (f"{first}, dynamic", lambda w: quantized(m, first, dynamic=True, widened=w)),
        ("mixed, static", lambda w: quantized(m, "mixed", widened=w)),
        ("mixed, dynamic", lambda w: quantized(m, "mixed", dynamic=True, widened=w)),
    ]
    return tune(ways, m.model, m.score, lambda q: _ranked(m, q), _ALLOWED)


def _ranked(m: Member, changed: nn.Module) -> list[str]:
    """Return the names of quantized layers by how much noise their inputs and weights get, most first."""
    noise = []
    theirs = dict(m.model.named_modules())
    for name, module in changed.named_modules():
        if hasattr(module, "input_cast") and isinstance(module.weight, Tensor):
            w = theirs[name].weight.detach()
            noise.append((float((module.weight.detach() - w).square().sum() / w.square().sum()), name))
    return [name for _, name in sorted(noise, reverse=True)]


def _activation_errors(members: list[Member]) -> dict[str, float]:
    """Return the mean relative squared error of convolutions' inputs by format, one scale per tensor."""
    tensors = [x for m in members if not m.language for x in activations(m)]
    return {name: _relative(tensors, name) for name in ("E4M3", "E3M4", "E5M2", "INT8")}


def _relative(tensors: list[Tensor], name: str) -> float:
    c = replace(cast("e4m3fn/tensor/fp32"), format=format(FORMATS[name][1]))
    return sum(float((c.apply(x) - x).square().sum() / x.square().sum().clamp_min(1e-30)) for x in tensors) / max(
        len(tensors), 1
    )


def _planted(setting: Setting) -> dict[str, float]:
    """Return perplexities of the language model with outlier channels planted, without SmoothQuant, which undoes them."""
    j = judge(setting)
    model = weights_changed(j.model, lambda name, w: w)
    inject_outliers(model, 64.0, 2)
    member = replace(language_member(j, model), language=False, ends=("lm_head",))
    found = {name: 1 / member.score(quantized(member, name)) for name in ("E4M3", "E3M4", "INT8")}
    return {"float32": 1 / member.score(model), **found}


# --- golden checks ---


def _golden(members: list[Member]) -> list[Check]:
    tops = {n: [int(v) for v in format(f).values()[-3:].tolist()] for n, f in (("E3M4", "e3m4fn"), ("E4M3", "e4m3fn"))}
    tops["E5M2"] = [int(v) for v in format("e5m2").values()[-2:].tolist()]
    counts = [int((format(f).values() >= 0).sum()) for f in ("e3m4fn", "e4m3fn", "e5m2")]
    halves = [2.0 ** -(format(f).precision + 1) for f in ("e5m2", "e4m3fn", "e3m4fn")]
    g = torch.Generator().manual_seed(0)
    uniform = [torch.rand(256, 256, generator=g) * 2 - 1]
    order = sorted(("E5M2", "E4M3", "E3M4"), key=lambda n: _relative(uniform, n))
    normal = torch.randn(256, 256, generator=g)
    heavy = [
        normal
        / ((torch.randn(256, 256, generator=g).square() + torch.randn(256, 256, generator=g).square()) / 2).sqrt()
    ]
    checks = [
        equal(
            "largest values",
            str(tops),
            "{'E3M4': [28, 29, 30], 'E4M3': [384, 416, 448], 'E5M2': [49152, 57344]}",
            claim=False,
        ),
        equal("finite values from 0 up of E3M4, E4M3, E5M2", str(counts), "[127, 127, 124]", claim=False),
        equal("relative half steps of E5M2, E4M3, E3M4", str(halves), "[0.125, 0.0625, 0.03125]", claim=False),
        equal("uniform data: formats by error, least first", ", ".join(order), "E3M4, E4M3, E5M2", claim=False),
        at_most(
            "Student-t 2, one scale: E4M3's error over INT8's",
            _relative(heavy, "E4M3") / _relative(heavy, "INT8"),
            1.0,
            claim=False,
        ),
    ]
    with_norm = next((m for m in members if m.name == "CNN"), None)
    if with_norm is not None:
        same = weights_changed(with_norm.model, lambda name, w: w)
        recalibrate(same, with_norm.forwards(same))
        off = abs(with_norm.score(same) - with_norm.score(with_norm.model))
        checks.append(
            at_most("wide network with its norms calibrated: points of accuracy it moves", off, 1.5, claim=False)
        )
    return checks


# --- the claim ---


def _passes(found: dict[Key, float], wide: dict[str, float], name: str, scheme: str) -> float:
    kept = [found[m, name, scheme] >= (1 - _ALLOWED) * wide[m] for m in wide]
    return sum(kept) / len(kept)


def _claims(
    found: dict[Key, float], wide: dict[str, float], norms: dict[str, tuple[float, float, float]],
    tuned: dict[str, Tuned], errors: dict[str, float], planted: dict[str, float],
) -> list[Check]:  # fmt: skip
    rate = {(n, s): _passes(found, wide, n, s) for n in FORMATS for s in ("standard", "extended")}
    best = max(rate["E4M3", "standard"], rate["E3M4", "standard"])
    checks = [
        at_least(
            "standard: networks that lose at most 1 %, best FP8 format over INT8, share",
            best - rate["INT8", "standard"],
            0.0,
        ),
        at_least(
            "extended: the same",
            max(rate["E4M3", "extended"], rate["E3M4", "extended"]) - rate["INT8", "extended"],
            0.0,
        ),
        at_most(
            "standard: networks that E5M2 passes beyond E4M3, share",
            rate["E5M2", "standard"] - rate["E4M3", "standard"],
            0.0,
        ),
        at_most("inputs of convolutions: E3M4's error over E4M3's", errors["E3M4"] / errors["E4M3"], 1.0),
        at_most("language model with outliers: E4M3's perplexity over E3M4's", planted["E4M3"] / planted["E3M4"], 1.0),
        at_most("language model with outliers: E4M3's perplexity over INT8's", planted["E4M3"] / planted["INT8"], 1.0),
        at_least("networks that pass after tuning, share", sum(t.passed for t in tuned.values()) / len(tuned), 0.926),
    ]
    if "MobileNet" in norms:
        full, before, after = norms["MobileNet"]
        checks.append(
            at_least("MobileNet, everything in E4M3: points that calibrating its norms wins", after - before, 0.0)
        )
        checks.append(at_least("the same, calibrated: share of the accuracy kept", after / full, 1 - _ALLOWED))
    return checks


def _table(found: dict[Key, float], wide: dict[str, float]) -> dict[str, Any]:
    columns = ["network", "scheme", "float32", *FORMATS]
    rows = [
        [m, s, _figure(wide[m]), *(_figure(found[m, n, s]) for n in FORMATS)]
        for m in wide
        for s in ("standard", "extended")
    ]
    return {
        "title": "Scores: accuracy in percent, dB of the U-Net, inverse perplexity of the language model",
        "columns": columns,
        "rows": rows,
    }


def _figure(value: float) -> float:
    return round(value, 2 if value > 1 else 4)


def _rates(found: dict[Key, float], wide: dict[str, float]) -> dict[str, Any]:
    rows = [[n, *(f"{100 * _passes(found, wide, n, s):.0f} %" for s in ("standard", "extended"))] for n in FORMATS]
    return {"title": "Networks that lose at most 1 %", "columns": ["format", "standard", "extended"], "rows": rows}


def _tuned_table(tuned: dict[str, Tuned], wide: dict[str, float]) -> dict[str, Any]:
    rows = [
        [
            name,
            t.name,
            ", ".join(t.widened),
            _figure(t.score),
            _figure(wide[name]),
            len(t.tried),
            "yes" if t.passed else "no",
        ]
        for name, t in tuned.items()
    ]
    columns = ["network", "ended with", "layers given back", "score", "float32", "tried", "passed"]
    return {"title": "Tuning by accuracy", "columns": columns, "rows": rows}


def _error_table(errors: dict[str, float], planted: dict[str, float]) -> dict[str, Any]:
    rows: list[list[Any]] = [
        ["inputs of convolutions: relative squared error", n, float(f"{v:.3g}")] for n, v in errors.items()
    ]
    rows += [["language model with planted outliers: perplexity", n, round(v, 4)] for n, v in planted.items()]
    return {"title": "Where each format is good", "columns": ["what", "format", "figure"], "rows": rows}


def _plot(found: dict[Key, float], wide: dict[str, float]) -> dict[str, Any]:
    series = [
        {"name": n, "x": list(wide), "y": [100 * found[m, n, "standard"] / wide[m] for m in wide], "mode": "markers"}
        for n in _SINGLE
    ]
    return {"title": "Share of the score kept, standard scheme", "series": series, "x": "network", "y": "percent"}


_NOTES = (
    "Eight networks: five trained here on MNIST (an MLP, a CNN and a MobileNet with batch normalisation, a ViT, a U-Net that takes off "
    "noise), the public ResNet20 and ResNet56 of CIFAR-10 (500 exact test pictures: one picture is 0.2 points), and stories260K. The "
    "paper has 75 architectures, which are out of reach here.",
    "Standard: products alone, first and last layer wide in networks for pictures. Extended: the inputs of normalisations, and sums and "
    "products of two tensors, too, and every layer. Softmax and embeddings stay wide. SmoothQuant (0.5) for the language model.",
    "INT8 is symmetric here, also for inputs that are never negative; the paper's has a zero point. Scales of inputs are static, from "
    "maxima over 256 pictures or 20 stories; E5M2's inputs are cast as they are. Scales of sums and products are made anew each time.",
    "Calibrating norms sees the calibration pictures without augmentation.",
    "FP8 products on a GPU are for the native backend's benchmarks.",
)

STUDY = Study(
    number=22,
    title="Post-training FP8 in three formats",
    paper="Shen et al. 2024, Efficient Post-training Quantization with FP8 Formats",
    claim="FP8 after training keeps more networks within 1 % than INT8 does; E4M3 suits language, E3M4 pictures; calibrating batch "
    "normalisation and tuning by accuracy bring the rest.",
    baseline="float32; INT8",
    treatment="E5M2, E4M3, E3M4, and E4M3 inputs with E3M4 weights; products alone or everything; tuning",
    measure="share of eight networks that lose at most 1 % of their score",
    expected="the best FP8 format at least as good as INT8; E3M4 finer on pictures, E4M3 better under outliers",
    run=run,
    needs=("data",),
)

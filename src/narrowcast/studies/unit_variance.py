"""Study 17: weights of unit variance: FP8 without scales, and learning rates that carry over from width to width."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrowcast.formats import format
from narrowcast.nn.linear import Linear
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import REUSE, WIDE, Gemm
from narrowcast.quantize import cast
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, within
from narrowcast.workloads import load_corpus, tokenize

_BASE, _HEADS = 64, 4
_STATIC = LinearSpec(
    Gemm(cast("e4m3fn"), cast("e4m3fn")), Gemm(cast("e5m2"), REUSE), Gemm(REUSE, REUSE)
)  # no scale anywhere, values cut at the format's range
_EXACT = LinearSpec(Gemm(WIDE, WIDE), Gemm(WIDE, WIDE), Gemm(WIDE, WIDE))


@dataclass(frozen=True)
class Form:
    """How a model's weights are written.

    Attributes:
        unit: weights of variance 1 and products times 1 / sqrt(fan_in), norms at the end of branches, a residual of
            constant variance, rates by width; or else the usual: small weights, norms at the start.
        spec: the three gemms of hidden layers.
        tau: weight of a branch in the residual, of unit weights.
    """

    unit: bool
    spec: LinearSpec = _EXACT
    tau: float = 0.4


class _Block(nn.Module):
    """Attention and a feed-forward unit with GELU, every linear layer a `Linear` of the form."""

    def __init__(self, width: int, form: Form, name: str) -> None:
        super().__init__()
        self.form = form
        sizes = {"qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width), "down": (4 * width, width)}
        self.layers = nn.ModuleDict({key: _linear(*size, form, f"{name}.{key}") for key, size in sizes.items()})
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in "ab"])

    def attend(self, x: Tensor) -> Tensor:
        """Return the attention branch."""
        shape = (*x.shape[:2], 3, _HEADS, -1)
        q, k, v = self.layers["qkv"](x).view(shape).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.layers["out"](y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def feed(self, x: Tensor) -> Tensor:
        """Return the feed-forward branch."""
        return self.layers["down"](F.gelu(self.layers["up"](x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        for norm, branch in zip(self.norms, (self.attend, self.feed), strict=True):
            if self.form.unit:
                x = math.sqrt(1 - self.form.tau) * x + math.sqrt(self.form.tau) * norm(branch(x))
            else:
                x = x + branch(norm(x))
        return x


def _linear(inputs: int, outputs: int, form: Form, name: str) -> Linear:
    source = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(source.weight, std=1.0 if form.unit else inputs**-0.5)
    layer = Linear(source, form.spec, name)
    if form.unit:
        layer.alpha = inputs**-0.5
    return layer


class Net(nn.Module):
    """A small language model in one of the two forms; embedding and head stay wide."""

    def __init__(self, vocab: int, width: int, form: Form, depth: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.form, self.width = form, width
        self.embed = nn.Embedding(vocab, width)
        self.place = nn.Parameter(torch.randn(128, width) * (1.0 if form.unit else 0.02))
        nn.init.normal_(self.embed.weight, std=1.0 if form.unit else 0.02)
        self.blocks = nn.ModuleList([_Block(width, form, f"blocks.{i}") for i in range(depth)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        nn.init.normal_(self.head.weight, std=1.0 if form.unit else width**-0.5)

    def forward(self, tokens: Tensor, kept: list[Tensor] | None = None) -> Tensor:
        """Return logits for int64 ``[batch, length]``; what leaves the last block is added to ``kept``."""
        x = self.embed(tokens) + self.place[: tokens.shape[1]]
        x = x * math.sqrt(0.5) if self.form.unit else x
        for block in self.blocks:
            x = block(x)
        if kept is not None:
            kept.append(x)
        y: Tensor = self.head(self.norm(x))
        return y / self.width if self.form.unit else y

    def groups(self, rate: float) -> list[dict[str, Any]]:
        """Return AdamW's groups: of unit weights, hidden layers' rates fall with the square root of the width."""
        hidden = [p for layer in self.modules() if isinstance(layer, Linear) for p in layer.parameters()]
        known = {id(p) for p in hidden}
        others = [p for p in self.parameters() if id(p) not in known]
        factor = math.sqrt(_BASE / self.width) if self.form.unit else 1.0
        return [{"params": hidden, "lr": rate * factor}, {"params": others, "lr": rate}]


@dataclass(frozen=True)
class Text:
    """Batches and a validation set of tokens."""

    tokens: Any
    vocab: int

    def batch(self, step: int, seed: int) -> Tensor:
        """Return int64 ``[8, 65]``."""
        return self.tokens.batch(seed, step, 0, 8, 64)  # type: ignore[no-any-return]


def run(setting: Setting) -> Outcome:
    """Measure."""
    corpus = tokenize(load_corpus(setting.folder("text") / "tinyshakespeare.txt"), 512)
    text = Text(corpus, corpus.vocab)
    unit, usual = Form(True), Form(False)
    sizes = {name: _coordinates(text, form, setting) for name, form in (("unit", unit), ("usual", usual))}
    sweeps = {name: _sweep(text, form, setting) for name, form in (("unit", unit), ("usual", usual))}
    losses = _fp8(text, setting)
    best = {name: [_best(curve) for curve in sweep.values()] for name, sweep in sweeps.items()}
    shift = {name: max(found) - min(found) for name, found in best.items()}
    exact = statistics.fmean(losses["unit, float32"])
    usual_exact = statistics.fmean(losses["usual, float32"])
    gap = 100 * (statistics.fmean(losses["unit, FP8 without scales"]) / exact - 1)
    usual_gap = 100 * (statistics.fmean(losses["usual, FP8 without scales"]) / usual_exact - 1)
    checks = [
        *_golden(setting),
        at_most(
            "block outputs across widths after 8 steps, unit: largest over smallest RMS", _ratio(sizes["unit"]), 1.4
        ),
        at_least("the same, usual, over unit's", _ratio(sizes["usual"]) / _ratio(sizes["unit"]), 1.0),
        at_most("best learning rate across widths, unit: octaves between", float(shift["unit"]), 1.0),
        at_least("the same, usual, minus unit's", float(shift["usual"] - shift["unit"]), 1.0),
        at_most("unit weights, FP8 without scales: loss above float32, %", gap, 1.0),
        at_least("usual weights, FP8 without scales: loss above float32, minus unit's, %", usual_gap - gap, 0.0),
    ]
    tables = (_size_table(sizes), _sweep_table(sweeps), _loss_table(losses))
    return Outcome(tuple(checks), tables, (_plot(sweeps),), _NOTES)


# --- golden checks ---


def _golden(setting: Setting) -> list[Check]:
    g = torch.Generator().manual_seed(setting.seed)
    logits = torch.randn(4000, 1024, generator=g)
    shares = logits.softmax(-1)
    variance = float(shares.square().sum(-1).mean())  # of values of unit variance, given the shares
    x, w = torch.randn(512, 300, generator=g), torch.randn(700, 300, generator=g)
    y = x @ w.T / math.sqrt(300)
    sample = torch.randn(400000, generator=g)
    flushed = {}
    for name, f in (("GELU", F.gelu), ("SiLU", F.silu), ("ReLU", F.relu)):
        z = f(sample)
        some = z != 0
        flushed[name] = float((format("e4m3fn").round(z[some]) == 0).float().mean())
    order = flushed["GELU"] > flushed["SiLU"] > flushed["ReLU"]
    return [
        within("variance of attention over 1024 keys, times 1024", 1024 * variance, 1024 * 0.002653, 0.05, claim=False),
        within("variance of a unit layer's output", float(y.var()), 1.0, 0.02, claim=False),
        within("share of hidden products that u-muP leaves in 16 bits, %", 100 * 5 / 12, 41.7, 0.05, claim=False),
        Check("share flushed by e4m3fn after GELU, SiLU, ReLU, %", ", ".join(f"{100 * v:.3f}" for v in flushed.values()), "falling", order, False),
    ]  # fmt: skip


# --- training ---


def _trained(net: Net, text: Text, rate: float, steps: int, seed: int) -> None:
    opt = torch.optim.AdamW(net.groups(rate), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min((s + 1) / 8, 1.0) * (1 - 0.9 * s / max(steps, 1)))
    for step in range(steps):
        tokens = text.batch(step, seed)
        loss = F.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        opt.zero_grad()
        loss.backward()
        opt.step()
        schedule.step()


def _loss(net: Net, text: Text, count: int) -> float:
    batches = text.tokens.validation_batches(count, 16, 64)
    with torch.no_grad():
        found = [F.cross_entropy(net(b[:, :-1]).flatten(0, 1), b[:, 1:].flatten()) for b in batches]
    value = float(torch.stack(found).mean())
    return value if math.isfinite(value) else 20.0


def _coordinates(text: Text, form: Form, setting: Setting) -> dict[int, float]:
    """Return, by width, the RMS of the last block's output after 8 steps at one learning rate."""
    found = {}
    for width in (64, 128) if setting.quick else (64, 128, 256, 512):
        net = Net(text.vocab, width, form, 2, setting.seed)
        _trained(net, text, 2**-5 if form.unit else 2**-7, 2 if setting.quick else 8, setting.seed)
        kept: list[Tensor] = []
        with torch.no_grad():
            net(text.batch(1000, setting.seed)[:, :-1], kept)
        found[width] = float(kept[0].square().mean().sqrt())
    return found


def _sweep(text: Text, form: Form, setting: Setting) -> dict[int, dict[int, float]]:
    """Return, by width, the validation loss of each learning rate, a power of two."""
    exponents = (-6, -4) if setting.quick else (range(-5, 3) if form.unit else range(-12, -4))
    found: dict[int, dict[int, float]] = {}
    for width in (64,) if setting.quick else (64, 128, 256):
        found[width] = {}
        for e in exponents:
            net = Net(text.vocab, width, form, 2, setting.seed)
            _trained(net, text, 2.0**e, 2 if setting.quick else 120, setting.seed)
            found[width][e] = _loss(net, text, 1 if setting.quick else 12)
        setting.note(f"{'unit' if form.unit else 'usual'}, width {width}: best rate 2**{_best(found[width])}")
    return found


def _best(curve: dict[int, float]) -> int:
    return min(curve, key=lambda e: curve[e])


def _fp8(text: Text, setting: Setting) -> dict[str, list[float]]:
    arms = {
        "unit, float32": (Form(True), 2**-2),
        "unit, FP8 without scales": (Form(True, _STATIC), 2**-2),
        "usual, float32": (Form(False), 2**-8),
        "usual, FP8 without scales": (Form(False, _STATIC), 2**-8),
    }
    found: dict[str, list[float]] = {}
    for name, (form, rate) in arms.items():
        found[name] = []
        for seed in range(setting.seed, setting.seed + (1 if setting.quick else 2)):
            net = Net(text.vocab, 128, form, 4, seed)
            _trained(net, text, rate, 2 if setting.quick else 250, seed)
            found[name].append(_loss(net, text, 1 if setting.quick else 24))
        setting.note(f"{name}: {statistics.fmean(found[name]):.4f}")
    return found


# --- tables ---


def _ratio(sizes: dict[int, float]) -> float:
    return max(sizes.values()) / min(sizes.values())


def _size_table(sizes: dict[str, dict[int, float]]) -> dict[str, Any]:
    widths = list(sizes["unit"])
    rows = [[name, *(found[w] for w in widths)] for name, found in sizes.items()]
    return {"title": "RMS of the last block's output after 8 steps, by width", "columns": ["weights", *map(str, widths)], "rows": rows}  # fmt: skip


def _sweep_table(sweeps: dict[str, dict[int, dict[int, float]]]) -> dict[str, Any]:
    rows = [[name, w, f"2**{_best(c)}", min(c.values())] for name, sweep in sweeps.items() for w, c in sweep.items()]
    return {"title": "Learning rates in powers of two, 120 steps", "columns": ["weights", "width", "best rate", "its loss"], "rows": rows}  # fmt: skip


def _loss_table(losses: dict[str, list[float]]) -> dict[str, Any]:
    rows = [[name, statistics.fmean(found), min(found), max(found)] for name, found in losses.items()]
    return {"title": "Four layers, 128 wide, 250 steps: validation loss", "columns": ["arm", "mean", "lowest", "highest"], "rows": rows}  # fmt: skip


def _plot(sweeps: dict[str, dict[int, dict[int, float]]]) -> dict[str, Any]:
    series = [
        {"name": f"{name}, {width} wide", "x": list(curve), "y": [min(v, 8.0) for v in curve.values()]}
        for name, sweep in sweeps.items()
        for width, curve in sweep.items()
    ]
    return {"title": "Validation loss against the learning rate", "x": "log2 of the rate at the base width", "y": "nats per token", "series": series}  # fmt: skip


_NOTES = (
    "Branches end with their norm and the residual has constant variance only in the unit form, as in the paper; tau = 0.4.",
    "The paper trains with Lion and decays weights apart from the rate; here AdamW without decay.",
    "Usual weights, a hundredth to a tenth, fall among the subnormals of e4m3fn without a scale, and gradients below e5m2; the "
    "last check shows what that costs.",
    "Divergence of scaled FP8 at 13 billion parameters, and transfer to widths in the thousands, are out of reach.",
)

STUDY = Study(
    number=17,
    title="Weights of unit variance",
    paper="Narayan et al. 2025, munit Scaling: Simple and Scalable FP8 LLM Training",
    claim="Weights of unit variance with products times 1/sqrt(fan_in) train in FP8 without any scale, and their best learning "
    "rate stays where it is as the width grows.",
    baseline="small weights, norms at the start of branches, one rate for all widths; float32",
    treatment="unit weights, norms at the end, constant-variance residual, rates by the square root of the width; static FP8",
    measure="size of block outputs and best learning rate across widths; validation loss over two seeds",
    expected="sizes within 20 % of each other; the best rate within an octave; FP8 within 1 % of float32",
    run=run,
    needs=("data",),
)

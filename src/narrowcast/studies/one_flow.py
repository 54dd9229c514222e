"""Study 26: train in FP8, train aware of INT4, quantize after training: one flow with the same numbers at each step."""

import copy
import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrowcast.metrics import kl_divergence
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import REUSE, WIDE, Gemm
from narrowcast.ptq import Solver
from narrowcast.ptq.catalogue import recipe as post_training
from narrowcast.ptq.recipe import PtqRecipe, Scheme
from narrowcast.qat.straight_through import Plan, finish, prepare
from narrowcast.quantize import Cast, cast
from narrowcast.recipes import Recipe, recipe
from narrowcast.studies.quantized_language import Judge, closed, judge
from narrowcast.studies.small_training import Spread, over_seeds
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal, within

_INSIDE = "model.layers.*"
#: what is trained for and what is quantized to: (weight, input)
TARGETS: dict[str, tuple[str, str | None]] = {
    "INT4 g32 weights": ("int4/1x32+pad/fp32", None),
    "INT4 g32 weights, INT8 inputs": ("int4/1x32+pad/fp32", "int8/row/fp32"),
    "FP8 weights and inputs": ("e4m3fn/row/fp32", "e4m3fn/row/fp32"),
    "INT3 g32 weights": ("int3/1x32+pad/fp32", None),
}


def float8_recipes() -> dict[str, Recipe]:
    """Return the three recipes of FP8 training: tensorwise, rowwise, rowwise with the weights' gradient wide."""
    row, tensor = cast("e4m3fn/row/fp32"), cast("e4m3fn/tensor/fp32")
    rowwise = recipe("fp8-rowwise")
    assert rowwise.linear is not None
    wide = LinearSpec(rowwise.linear.fwd, Gemm(row, tensor, out=rowwise.linear.dgrad.out), Gemm(WIDE, WIDE))
    return {
        "tensorwise": recipe("fp8-tensorwise"),
        "rowwise": rowwise,
        "rowwise, gradient of weights wide": replace(rowwise, name="fp8-rowwise-gw-hp", linear=wide),
    }


def run(setting: Setting) -> Outcome:
    """Measure."""
    base = over_seeds(recipe("bf16"), setting)
    trained = {name: over_seeds(one, setting) for name, one in float8_recipes().items()}
    j = judge(setting)
    text = j.own_text(16 if setting.quick else 768, setting.seed, 16 if setting.quick else 128)
    aware = {name: _aware(j, name, text, setting) for name in ([*TARGETS][:1] if setting.quick else TARGETS)}
    checks = [*_golden(), *_training_checks(base, trained), *_aware_checks(j, aware)]
    return Outcome(tuple(checks), (_training_table(base, trained), _aware_table(j, aware)), notes=_NOTES)


# --- quantization-aware training ---


def _plan(name: str) -> tuple[Cast, Cast | None]:
    weight, inputs = TARGETS[name]
    return cast(weight), None if inputs is None else cast(inputs)


def _aware(j: Judge, name: str, text: list[Tensor], setting: Setting) -> dict[str, float]:
    """Return perplexities: rounded after training, by GPTQ, trained aware of it; and how many logits `finish` moves."""
    weight, inputs = _plan(name)
    after = PtqRecipe(name, "", "", Scheme(weight, inputs))
    plain = j.perplexity(after, [])
    solved = j.perplexity(replace(after, solver=Solver()), text[: max(1, len(text) // 12)])
    model = copy.deepcopy(j.model)
    prepare(model, {_INSIDE: Plan(weight, inputs)})
    before = j.predict(model).perplexity
    _distil(model, j.model, text, 2 if setting.quick else 400, setting.seed)
    during = _logits(model, j)
    reached = j.predict(model).perplexity
    finish(model)
    moved = int((_logits(model, j) != during).sum())
    setting.note(f"{name}: rounded {plain:.4f}, GPTQ {solved:.4f}, trained aware {reached:.4f}")
    return {"rounded": plain, "prepared": before, "gptq": solved, "aware": reached, "moved": moved}


@torch.no_grad()
def _logits(model: nn.Module, j: Judge) -> Tensor:
    found: Tensor = model(input_ids=j.stories.batches[0], use_cache=False).logits
    return found


def _distil(model: nn.Module, wide: nn.Module, text: list[Tensor], steps: int, seed: int) -> None:
    """Train ``model`` to predict what ``wide`` does on ``text`` (rows of one length), AdamW under a cosine."""
    rows, g = torch.cat(text), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    for step in range(steps):
        batch = rows[torch.randint(len(rows), (16,), generator=g)]
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        with torch.no_grad():
            target = torch.log_softmax(wide(input_ids=batch, use_cache=False).logits, -1)
        found = torch.log_softmax(model(input_ids=batch, use_cache=False).logits, -1)
        loss = F.kl_div(found, target, reduction="none", log_target=True).sum(-1).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


# --- golden checks ---


def _golden() -> list[Check]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(256, 256, generator=g) * torch.randn(256, 1, generator=g).exp()
    power = cast("e4m3fn/row/e8m0-ceil").settle(x)
    scaled = float((x.abs().amax(1, keepdim=True) * power.scale.into).max())
    one = torch.tensor([[1.0, -0.5, 0.25]])
    same = torch.log_softmax(x, -1)
    return [
        within(
            "INT8, largest magnitude 1: scale",
            float(cast("int8/row/fp32").settle(one).scale.stored),
            1 / 127,
            1e-9,
            claim=False,
        ),
        at_most("FP8 under powers of two: largest scaled magnitude", scaled, 448.0, claim=False),
        equal("gradient of weights kept wide: values unlike the wide layer's", _wide_gradient(), 0, claim=False),
        at_most(
            "KL divergence of predictions from themselves",
            float(kl_divergence(same, same).abs().max()),
            1e-12,
            claim=False,
        ),
    ]


def _wide_gradient() -> int:
    """Return how many gradients of a weight differ between the recipe that keeps them wide and a wide layer."""
    g = torch.Generator().manual_seed(0)
    x, out = (torch.randn(64, 64, generator=g) for _ in range(2))
    layers = [nn.Sequential(nn.Linear(64, 64, bias=False)) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    spec = LinearSpec(Gemm(WIDE, WIDE), Gemm(WIDE, REUSE), Gemm(WIDE, WIDE))
    narrow = float8_recipes()["rowwise, gradient of weights wide"].linear
    assert narrow is not None
    for layer, one in zip(layers, (narrow, spec), strict=True):
        replace(recipe("fp8-rowwise"), linear=one).convert(layer, backend="emulate")
        (layer(x) * out).sum().backward()
    a, b = (next(layer.parameters()).grad for layer in layers)
    assert a is not None
    assert b is not None
    return int((a != b).sum())


# --- the claim ---


def _training_checks(base: Spread, trained: dict[str, Spread]) -> list[Check]:
    return [
        at_most(f"FP8 training, {name}: validation loss over bf16's, share", spread.mean / base.mean - 1, 0.01)
        for name, spread in trained.items()
    ]


def _aware_checks(j: Judge, aware: dict[str, dict[str, float]]) -> list[Check]:
    first = next(iter(aware))
    share = closed(aware[first]["rounded"], aware[first]["aware"], j.wide.perplexity)
    moved = sum(row["moved"] for row in aware.values())
    apart = max(abs(row["prepared"] - row["rounded"]) for row in aware.values())
    checks = [
        at_least(f"{first}: share of the perplexity lost that training aware of it wins back", share, 0.6),
        equal("logits that converting moves after training, all targets", moved, 0),
        at_most("prepared against quantized after training, before any step: perplexities apart", apart, 1e-6),
    ]
    for name, row in [*aware.items()][1:]:
        won = closed(row["rounded"], row["aware"], j.wide.perplexity)
        checks.append(at_least(f"{name}: the same", won, 0.6))
    return checks


def _training_table(base: Spread, trained: dict[str, Spread]) -> dict[str, Any]:
    rows = [["bf16", round(base.mean, 4), base.listed, None]]
    rows += [[n, round(s.mean, 4), s.listed, round(100 * (s.mean / base.mean - 1), 2)] for n, s in trained.items()]
    columns = ["recipe", "validation loss", "by seed", "above bf16, %"]
    return {"title": "Training in FP8", "columns": columns, "rows": rows}


def _aware_table(j: Judge, aware: dict[str, dict[str, float]]) -> dict[str, Any]:
    rows = []
    for name, row in aware.items():
        figures = [round(row[key], 4) for key in ("rounded", "gptq", "aware")]
        rows.append([name, *figures, round(closed(row["rounded"], row["aware"], j.wide.perplexity), 3)])
    columns = ["target", "rounded after training", "GPTQ", "trained aware of it", "share won back"]
    return {"title": f"Perplexity of stories260K (float32 {j.wide.perplexity:.4f})", "columns": columns, "rows": rows}


_W4 = post_training("w4a16-rtn-g32")  # the recipe that the first target is, by name
_NOTES = (
    "FP8 training: a Llama of half a million parameters, 150 steps on tiny Shakespeare, three seeds, emulated. Training aware of a "
    "format: 400 steps of 16 x 128 tokens that stories260K wrote itself, towards its own predictions; judged on 80 stories.",
    f"The first target is the recipe {_W4.name}; prepare, train and finish use the very cast that post-training quantization uses.",
    "That codes and scales equal torchao's where both know the format is a test (`tests/ptq/test_torchao.py`), since studies import no "
    "peer. Not taken over: its INT4 with a real-valued zero point (tinygemm).",
    "Speed on an H100 is for the native backend's benchmarks; the paper's figures (1.25 times by tensorwise FP8 on eight H100, 67 % and "
    "up to 96 % won back by training) are its own.",
)

STUDY = Study(
    number=26,
    title="TorchAO: one flow from training to serving",
    paper="Or et al. 2025, TorchAO: PyTorch-Native Training-to-Serving Model Optimization",
    claim="FP8 training follows bf16; training aware of the format wins back most of what rounding loses; converting afterwards changes "
    "nothing.",
    baseline="bf16 training; rounding after training",
    treatment="three FP8 recipes; straight-through training under the cast that is deployed",
    measure="validation losses over three seeds; perplexity of a small language model before and after",
    expected="within 1 % of bf16; at least 60 % won back; the same bits before and after converting",
    run=run,
    needs=("data",),
)

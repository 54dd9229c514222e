"""Study 20: INT8 against FP8 with 2 to 5 exponent bits, after training and trained with, on a CNN and on a transformer."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast.analysis.hardware import mac, product_span
from narrowcast.formats import Format, Minifloat, Specials, format
from narrowcast.io import load_model
from narrowcast.metrics import mean_loss, next_token_loss
from narrowcast.ptq import LeastError
from narrowcast.ptq.pipeline import quantize_model
from narrowcast.ptq.recipe import PtqRecipe, Scheme, Smooth
from narrowcast.qat import Plan, finish, prepare
from narrowcast.quantize import Cast
from narrowcast.scaling import ROW, TENSOR, Wide
from narrowcast.studies.study import Outcome, Setting, Study, at_least, at_most, equal
from narrowcast.studies.vision import quantized, resnet20, score
from narrowcast.workloads import cifar10, encode, fit

_WINDOW = 128
_KEPT = ("*lm_head", "*embed*")
_OUTLIERS, _FACTOR = (3, 17, 40), 48.0  # channels of every norm's output that are planted, and how large


def _formats() -> list[Format]:
    """INT8 and FP8-Ex with finite codes only, bias 2**(E-1) - 1 (the scale makes any other the same)."""
    floats = [Minifloat(f"e{e}m{7 - e}", e, 7 - e, (1 << (e - 1)) - 1, Specials.NONE) for e in (2, 3, 4, 5)]
    return [format("int8"), *floats]


def _recipe(fmt: Format, keep: tuple[str, ...]) -> PtqRecipe:
    scheme = Scheme(Cast(fmt, ROW, Wide()), Cast(fmt, TENSOR, Wide()), static=True)
    return PtqRecipe(str(fmt), "", "", scheme, search=LeastError(2.0, 30), keep_wide=keep)


def _plan(fmt: Format) -> Plan:
    return Plan(Cast(fmt, ROW, Wide()), Cast(fmt, TENSOR, Wide()))


# --- the clean CNN ---


def _cnn(setting: Setting) -> tuple[float, list[list[Any]], float]:
    model, calibration, test = resnet20(setting)
    train, _ = cifar10(setting.folder("cifar10"))
    wide, rows = score(model, test), []
    for fmt in _formats()[: 2 if setting.quick else None]:
        after = quantized(model, _recipe(fmt, ()), calibration)
        tuned = copy.deepcopy(model)
        prepare(tuned, {"*": _plan(fmt)})
        fit(
            tuned, train.head(64) if setting.quick else train, epochs=2, rate=2e-5, seed=setting.seed, freeze_norms=True
        )
        finish(tuned)
        rows.append(["ResNet20, accuracy %", str(fmt), score(after, test), score(tuned, test), None])
        setting.note(f"ResNet20 {fmt}: done")
    return wide, rows, _converted(model, calibration, test)


def _converted(model: nn.Module, calibration: Any, test: Any) -> float:
    """Return what INT8 made from an FP8-E4 network loses against that network, points."""
    e4 = quantized(model, _recipe(_formats()[3], ()), calibration)
    again = quantized(_without_casts(e4), _recipe(format("int8"), ()), calibration)
    return score(e4, test) - score(again, test)


def _without_casts(model: nn.Module) -> nn.Module:
    """Return a copy that has the narrowed weights but sees wide inputs."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if "input_cast" in module._modules:
            del module._modules["input_cast"]
            module._forward_pre_hooks.clear()
    return plain


# --- the transformer with outliers ---


def _planted(setting: Setting) -> tuple[nn.Module, Tensor, Tensor]:
    """Return (the real language model with planted outliers, training windows, held-out windows).

    A few channels of every norm's output are made large and the weights that read them small by as much: the function is
    the same, but its activations have outliers as large models' have.
    """
    model, tokenizer = load_model(setting.folder("lm-stories260K") / "hf")
    assert tokenizer is not None
    text = (setting.folder("text") / "tinystories_val100.txt").read_text()
    ids = encode((text,), tokenizer)[0]
    rows = torch.tensor([[1, *ids[i : i + _WINDOW]] for i in range(0, len(ids) - _WINDOW, _WINDOW)])
    channels = list(_OUTLIERS)
    with torch.no_grad():
        for layer in model.model.layers:  # type: ignore[union-attr]
            for norm, readers in _readers(layer):
                norm.weight[channels] *= _FACTOR
                for linear in readers:
                    linear.weight[:, channels] /= _FACTOR
    half = 16 if setting.quick else len(rows) // 2
    return model.eval(), rows[:half], rows[-half:]


def _readers(layer: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    attention, mlp = layer.self_attn, layer.mlp
    yield layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)
    yield layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)


def _transformer(setting: Setting) -> tuple[float, list[list[Any]]]:
    model, train, held = _planted(setting)
    test = held.split(16)
    wide, rows = mean_loss(model, test), []
    for fmt in _formats()[: 2 if setting.quick else None]:
        after = copy.deepcopy(model)
        quantize_model(after, _recipe(fmt, _KEPT), _calls(after, train[:64]))
        smoothed = copy.deepcopy(model)
        quantize_model(smoothed, replace(_recipe(fmt, _KEPT), balance=Smooth()), _calls(smoothed, train[:64]))
        tuned = copy.deepcopy(model)
        prepare(tuned, {"*lm_head": Plan(), "*": _plan(fmt)})
        _finetune(tuned, train, 2 if setting.quick else 200, setting.seed)
        losses = [mean_loss(m, test) for m in (after, tuned, smoothed)]
        rows.append(["language model, nats per token", str(fmt), *losses])
        setting.note(f"language model {fmt}: done")
    return wide, rows


def _calls(model: nn.Module, rows: Tensor) -> list[Callable[[], object]]:
    return [lambda b=batch: model(input_ids=b, use_cache=False) for batch in rows.split(16)]  # type: ignore[misc]


def _finetune(model: nn.Module, rows: Tensor, steps: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        picked = rows[torch.randint(len(rows), (8,), generator=generator)]
        loss = next_token_loss(model, picked)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    model.eval()


# --- the study ---


def run(setting: Setting) -> Outcome:
    """Fill the table of five formats, two networks, after training and trained with."""
    wide, images, lost = _cnn(setting)
    loss, text = _transformer(setting)
    ptq = {str(row[1]): row[2] for row in images}
    gaps = {str(row[1]): row[2] - loss for row in text}
    tuned = {str(row[1]): row[3] for row in text}
    smoothed = {str(row[1]): row[4] for row in text}
    few = min(ptq.get("int8", 0.0), ptq.get("e2m5", 0.0))
    many = max((v for k, v in gaps.items() if k in ("e3m4", "e4m3")), default=0.0)
    units = {str(f): mac(f, f) for f in _formats()}
    extra = units["e4m3"].gates / units["int8"].gates - 1
    checks = [
        at_least(
            "CNN: worse of INT8 and E2 minus best of E3, E4, E5, points",
            few - max((ptq[k] for k in ptq if k[:2] in ("e3", "e4", "e5")), default=few),
            -0.5,
        ),
        at_most(
            "transformer: worse gap of E3 and E4 over INT8's gap, after training", many / max(gaps["int8"], 1e-9), 1.0
        ),
        at_most(
            "transformer: INT8 minus the best format, after SmoothQuant, nats",
            smoothed["int8"] - min(smoothed.values()),
            0.02,
        ),
        at_most(
            "transformer: INT8 minus the best format, both trained with, nats",
            tuned["int8"] - min(tuned.values()),
            0.02,
        ),
        at_most("CNN: lost by converting FP8-E4 to INT8, points", lost, 0.5),
        at_least("gates of an E4 unit above INT8's, percent", 100 * extra, 50.0),
        *(
            equal(f"bit span of a product, {f}", product_span(f, f), span, claim=False)
            for f, span in zip(_formats(), (14, 16, 22, 36, 66), strict=True)
        ),
    ]
    table = {
        "title": f"Float32: {wide:.2f} % and {loss:.4f} nats",
        "columns": ["measure", "format", "after training", "trained with", "after SmoothQuant"],
        "rows": [*images, *text],
    }
    cost = {"title": "A unit that sums 1024 exact products", "columns": ["format", "span, bits", "gates", "energy, pJ", "area, um^2"],
            "rows": [[k, u.span, u.gates, u.energy, u.area] for k, u in units.items()]}  # fmt: skip
    notes = (
        f"Outliers are planted: channels {_OUTLIERS} of every norm's output are {_FACTOR:g} times larger and the weights that read them as much smaller.",
        "Weights per channel, activations per tensor, ranges of weights by least squared error, in every arm alike. Training with: two epochs of 3,044 pictures; 200 steps of 8 windows.",
        "Gates are a model (exact accumulators), not a synthesis; on a GPU both formats have the same peak rate.",
    )
    return Outcome(tuple(checks), (table, cost), (), notes)


STUDY = Study(
    number=20,
    title="FP8 or INT8 for inference",
    paper="van Baalen et al. 2023, FP8 versus INT8 for efficient deep learning inference",
    claim="INT8 is as good as FP8 where there are no outliers, FP8-E4 wins where there are, SmoothQuant or training with the format closes the gap, and FP8 units cost more.",
    baseline="INT8, symmetric",
    treatment="FP8 with 2, 3, 4 and 5 exponent bits, finite codes only, real-valued scales",
    measure="accuracy of ResNet20 (exact CIFAR-10 test pictures); loss of a real language model with planted outliers; gates of an exact MAC",
    expected="INT8/E2 within half a point of the best on the CNN, E3/E4 better than INT8 on outliers, no gap left after SmoothQuant or training with; 50 % more gates or more",
    run=run,
    needs=("data",),
)

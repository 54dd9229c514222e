"""What study 33 measures on models: block formats on real tensors, on a language model's predictions, in training."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from narrowcast.analysis.loss import narrowed
from narrowcast.analysis.tensors import inputs_of, matrix
from narrowcast.formats import format
from narrowcast.io import open_tensors
from narrowcast.metrics import top_divergence
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import WIDE, Gemm
from narrowcast.quantize import Cast, cast
from narrowcast.recipes import Recipe, recipe
from narrowcast.studies.small_training import Spread, over_seeds
from narrowcast.studies.stories import load_stories
from narrowcast.studies.study import Setting
from narrowcast.studies.through import Through
from narrowcast.transforms import Hadamard

_MX, _NV = "1x32+pad/e8m0-ceil", "1x16+pad/e4m3fn+fp32"
CASTS = {
    "MXINT8": cast(f"int8/{_MX}"), "MXFP8": cast(f"e4m3fn/{_MX}"),
    "MXINT6": cast(f"int6/{_MX}"), "MXFP6": cast(f"e2m3fn/{_MX}"),
    "MXINT4": cast(f"int4/{_MX}"), "MXFP4": cast(f"e2m1fn/{_MX}"),
    "NVINT4": cast(f"int4/{_NV}"), "NVFP4": cast(f"e2m1fn/{_NV}"),
}  # fmt: skip
_EXACT = 150.0  # stands for "nothing lost", dB
Tensors = dict[str, dict[str, Tensor]]


def real_tensors(setting: Setting) -> Tensors:
    """Return weights and inputs of the language model's linear layers, and the kernels of a ResNet20."""
    stories = load_stories(setting)
    model = stories.model
    inputs = inputs_of(model, lambda: logits_of(model, stories.batches[0]), rows=1024)
    weights = {name: layer.weight.detach() for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    kernels = {name: matrix(t) for name, t in open_tensors(setting.folder("cifar10") / "resnet20.safetensors")}
    resnet = {name: t for name, t in kernels.items() if t is not None and t.shape[1] >= 32}
    found = {"language model, weights": weights, "language model, inputs": inputs, "ResNet20, weights": resnet}
    return {group: dict(list(t.items())[:2]) for group, t in found.items()} if setting.quick else found


def _rotated(name: str) -> Cast:
    plain = CASTS[name]
    return replace(plain, transform=Hadamard(plain.tile.cols, "fixed"))


def decibels_of(tensors: dict[str, Tensor]) -> dict[str, list[tuple[float, float]]]:
    """Return, per format, (plain, rotated) SQNR in dB of each tensor."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASTS}
    for x in tensors.values():
        for name, plain in CASTS.items():
            both = [narrowed(c, x)[1].sqnr_db for c in (plain, _rotated(name))]
            found[name].append((both[0] or _EXACT, both[1] or _EXACT))
    return found


# --- direct cast of a language model ---


def divergences(setting: Setting) -> dict[str, tuple[float, float]]:
    """Return, per format, the KL divergence from the float32 model, plainly cast and rotated, in nats."""
    stories = load_stories(setting)
    wide = [logits_of(stories.model, batch) for batch in stories.batches]
    found = {}
    for name, plain in CASTS.items():
        both = []
        for rotation in (None, Hadamard(plain.tile.cols, "fixed")):
            forward, wide_gemm = Gemm(plain, plain, transform=rotation), Gemm(WIDE, WIDE)
            spec = LinearSpec(forward, wide_gemm, wide_gemm)
            narrow = stories.converted(Recipe(name, "direct cast", "sheet 33", spec))
            each = [top_divergence(w, logits_of(narrow, b)) for w, b in zip(wide, stories.batches, strict=True)]
            sizes = [batch.numel() - len(batch) for batch in stories.batches]
            both.append(sum(d * n for d, n in zip(each, sizes, strict=True)) / sum(sizes))
        found[name] = (both[0], both[1])
        setting.note(f"{name}: KL {both[0]:.3g}, rotated {both[1]:.3g}")
    return found


@torch.no_grad()
def logits_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Return the logits ``[batch, context, vocabulary]`` of a language model for ``batch`` ``[batch, context + 1]``."""
    logits: Tensor = model(input_ids=batch[:, :-1], use_cache=False).logits
    return logits


# --- training ---


def _uniform(name: str, operand: Cast) -> Recipe:
    """Return the recipe that casts all six operands alike, each along its own contraction axis."""
    gemm = Gemm(operand, operand, out=format("bfloat16"))
    return Recipe(name, "all six operands alike", "sheet 33", LinearSpec(gemm, gemm, Gemm(operand, operand)))


def train_all(setting: Setting) -> dict[str, Spread]:
    """Train under bf16, both 8-bit block formats, and INT8 by bfloat16 scales with and without -128."""
    through = {end: Through(format("bfloat16"), format(f"int8{end}")) for end in ("", "_full")}
    scaled = cast("int8/1x32+pad/bfloat16")
    recipes = (
        recipe("bf16"), _uniform("MXFP8", CASTS["MXFP8"]), _uniform("MXINT8", CASTS["MXINT8"]),
        _uniform("INT8 by bfloat16 scales, symmetric", replace(scaled, format=through[""])),
        _uniform("INT8 by bfloat16 scales, down to -128", replace(scaled, format=through["_full"])),
    )  # fmt: skip
    return {r.name: over_seeds(r, setting, steps=120) for r in recipes}

"""Study 11: DeepSeek-V3's FP8: fine tiles, promoted accumulation, logarithmic tiles for messages, latent attention."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from narrowcast.accumulate import accumulator
from narrowcast.formats import format
from narrowcast.models.deepseek import LatentWeights, Router, grouped_cache_bytes, latent_cache_bytes, latent_decode
from narrowcast.nn.spec import LinearSpec
from narrowcast.ops import Gemm, multiply
from narrowcast.quantize import cast
from narrowcast.recipes import Recipe, recipe
from narrowcast.storage import LogTile, storage
from narrowcast.studies.small_training import Spread, over_seeds
from narrowcast.studies.study import Check, Outcome, Setting, Study, at_least, at_most, equal, within

TILE, SQUARE = cast("e4m3fn/1x128/fp32"), cast("e4m3fn/128x128/fp32")


def run(setting: Setting) -> Outcome:
    """Measure."""
    depth = _accumulation(setting)
    tiles = _messages(setting)
    losses = _training(setting)
    base = losses["bf16"].mean
    gaps = {name: 100 * (spread.mean / base - 1) for name, spread in losses.items()}
    deepest = depth[-1]
    gaussian, heavy = tiles["Gaussian"], tiles["Student t, 2 degrees"]
    checks = [
        *_golden(setting),
        *_models(setting),
        at_least(f"Hopper's accumulator at K = {deepest['k']}: error without promotion over that with it", deepest["plain"] / deepest["promoted"], 10.0),
        at_least("error without promotion, longest K over shortest", deepest["plain"] / depth[0]["plain"], 2.0),
        at_most("error with promotion, longest K over shortest", deepest["promoted"] / depth[0]["promoted"], 1.5),
        at_least("Gaussian tiles: mean square error of E4M3 over LogFMT-8", gaussian["e4m3fn"] / gaussian["logfmt8"], 1.0),
        at_least("heavy-tailed tiles: mean square error of E4M3 over LogFMT-8", heavy["e4m3fn"] / heavy["logfmt8"], 1.0),
        at_most("LogFMT-10: mean square error over bfloat16's", gaussian["logfmt10"] / gaussian["bfloat16"], 2.0),
        at_most("bias of LogFMT-8, rounded by value, share of that rounded by logarithm", abs(tiles["bias"]["value"]) / abs(tiles["bias"]["logarithm"]), 0.2),
        at_most("fine tiles: final loss above bfloat16, %", gaps["fp8-block"], 0.5),
        at_least("one scale a tensor, E4M3 gradients: its gap minus that of fine tiles, %", gaps[_TENSOR] - gaps["fp8-block"], 0.0),
    ]  # fmt: skip
    tables = (_depth_table(depth), _message_table(tiles), _training_table(losses, gaps))
    return Outcome(tuple(checks), tables, (_plot(depth),), _NOTES)


# --- golden checks ---


def _golden(setting: Setting) -> list[Check]:
    g = torch.Generator().manual_seed(setting.seed)
    x, w = torch.randn(32, 512, generator=g), torch.randn(256, 512, generator=g)
    x *= torch.exp(2 * torch.randn(32, 512, generator=g))
    wrong = int((TILE.apply(x).numpy() != _by_loop(x.numpy())).sum())
    product = multiply(x, w, Gemm(TILE, SQUARE)).double()
    oracle = TILE.apply(x).double() @ SQUARE.apply(w).double().T
    error = float((product - oracle).norm() / oracle.norm())
    powers = [
        float(cast("e4m3fn/tensor/e8m0-ceil").quantize(torch.tensor([448.0 * r])).scales) - 127
        for r in (1.0, 1.0001, 0.75)
    ]
    cached = [latent_cache_bytes(61), grouped_cache_bytes(126, 8), grouped_cache_bytes(80, 8)]
    eight = LogTile(8)
    span = torch.cat([torch.tensor([2.0**-40]), torch.ones(127)])
    return [
        equal("1x128 tiles: values other than those of a loop in NumPy", wrong, 0, claim=False),
        at_most("1x128 by 128x128 product: relative error from float64", error, 1e-6, claim=False),
        equal("powers of two above 1, 1.0001 and 0.75", str([2.0**p for p in powers]), "[1.0, 2.0, 1.0]", claim=False),
        equal("bytes cached for a token: V3, LLaMA-3.1 405B, Qwen2.5 72B", str(cached), "[70272, 516096, 327680]", claim=False),
        equal("magnitudes of LogFMT-8", eight.steps + 1, 127, claim=False),
        within("its neighbours at 32 binades, ratio", 2.0 ** float(eight.store(span)["step"]), 1.1925, 1e-4, claim=False),
        equal("bits of a dispatched element, 1x128 and float32", TILE.bits_per_element((1, 128)), 8.25, claim=False),
    ]  # fmt: skip


def _by_loop(x: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Return 1x128 tiles written out: amax / 448, its reciprocal, nearest of the 127 magnitudes, ties to the even code."""
    magnitudes = format("e4m3fn").values().numpy()
    magnitudes = magnitudes[magnitudes >= 0].astype(np.float32)
    out = np.empty_like(x)
    for row in range(len(x)):
        for start in range(0, x.shape[1], 128):
            tile = x[row, start : start + 128]
            scale = np.float32(np.abs(tile).max() / np.float32(448))
            y = np.abs(tile * np.float32(1 / scale)).astype(np.float64)
            low = np.clip(np.searchsorted(magnitudes, y, side="right") - 1, 0, len(magnitudes) - 2)
            middle = (magnitudes[low].astype(np.float64) + magnitudes[low + 1]) / 2
            code = low + ((y > middle) | ((y == middle) & (low % 2 == 1)))
            out[row, start : start + 128] = np.copysign(magnitudes[code] * scale, tile)
    return out


def _models(setting: Setting) -> list[Check]:
    g = torch.Generator().manual_seed(setting.seed)
    heads, nope, rope, value, latent, width = 8, 16, 8, 16, 32, 64
    shapes = ((heads, nope + rope, width), (latent + rope, width), (heads, nope, latent), (heads, value, latent))
    weights = LatentWeights(*(torch.randn(shape, generator=g, dtype=torch.float64) / 8 for shape in shapes))
    x, cache = torch.randn(width, generator=g).double(), torch.randn(50, latent + rope, generator=g).double()
    a, b = (latent_decode(weights, x, cache, absorbed=absorbed) for absorbed in (False, True))
    scores = torch.rand(64, 256, generator=g)
    bias = torch.randn(256, generator=g) / 20
    experts, shares = Router().route(scores, bias)
    wrong = sum(_route_by_loop(s, bias) != set(e.tolist()) for s, e in zip(scores, experts, strict=True))
    return [
        at_most(
            "latent attention, absorbed or not: largest difference", float((a - b).abs().max()), 1e-12, claim=False
        ),
        equal("tokens that a loop sends to other experts", wrong, 0, claim=False),
        within("weights of a token's experts, sum", float(shares.sum(-1).mean()), 2.5, 1e-5, claim=False),
    ]


def _route_by_loop(scores: Tensor, bias: Tensor) -> set[int]:
    biased = (scores + bias).tolist()
    groups = [biased[i : i + 32] for i in range(0, 256, 32)]
    best = sorted(range(8), key=lambda i: -sum(sorted(groups[i])[-2:]))[:4]
    allowed = [e for e in range(256) if e // 32 in best]
    return set(sorted(allowed, key=lambda e: -biased[e])[:8])


# --- accumulation ---


def _accumulation(setting: Setting) -> list[dict[str, float]]:
    """Return, by K, the relative error of products of E4M3 numbers under Hopper's accumulator, bare and promoted."""
    element = cast("e4m3fn")
    found = []
    for k in (512, 1024) if setting.quick else (512, 1024, 2048, 4096, 8192, 16384):
        g = torch.Generator().manual_seed(setting.seed)
        a, b = (torch.rand(16, k, generator=g) for _ in "ab")
        exact = element.apply(a).double() @ element.apply(b).double().T
        row: dict[str, float] = {"k": k}
        for name, spelling in (("plain", "hopper-fp8"), ("promoted", "hopper-fp8/every128/fp32")):
            product = multiply(a, b, Gemm(element, element, accumulator=accumulator(spelling))).double()
            row[name] = float((product - exact).abs().mean() / exact.abs().mean())
            row[f"{name} worst"] = float(((product - exact).abs() / exact.abs()).max())
        found.append(row)
        setting.note(f"K = {k}: {row['plain']:.2e} bare, {row['promoted']:.2e} promoted")
    return found


# --- messages ---


def _messages(setting: Setting) -> dict[str, dict[str, float]]:
    """Return mean square errors (over the mean square) of ways to send tiles of 128, and LogFMT-8's bias."""
    g = torch.Generator().manual_seed(setting.seed)
    count = 128 * (200 if setting.quick else 8000)
    normal = torch.randn(count, generator=g)
    heavy = torch.randn(count, generator=g) / (torch.randn(2, count, generator=g).square().mean(0)).sqrt()
    channels = normal * torch.exp(1.5 * torch.randn(128, generator=g)).repeat(count // 128)
    ways = {"e4m3fn": "e4m3fn/1x128+pad/fp32", "e5m2": "e5m2/1x128+pad/fp32", "logfmt8": "logfmt8/1x128+pad",
            "logfmt10": "logfmt10/1x128+pad", "bfloat16": "bfloat16"}  # fmt: skip
    found = {}
    for title, x in (("Gaussian", normal), ("Student t, 2 degrees", heavy), ("channels of unlike size", channels)):
        found[title] = {name: _square_error(x, storage(way)) for name, way in ways.items()}
    positive = normal.abs() + 0.01
    by_value = LogTile(8).load(LogTile(8).store(positive), count)
    by_log = _by_logarithm(positive)
    found["bias"] = {
        "value": float((by_value.double() - positive).mean() / positive.double().mean()),
        "logarithm": float((by_log - positive.double()).mean() / positive.double().mean()),
    }
    return found


def _square_error(x: Tensor, way: Any) -> float:
    back = way.load(way.store(x), x.numel())
    return float((back.double() - x).square().mean() / x.double().square().mean())


def _by_logarithm(x: Tensor) -> Tensor:
    """Return LogFMT-8 with the nearest logarithm instead of the nearest value."""
    logs = x.double().log().view(-1, 128)
    low, top = logs.amin(1, keepdim=True), logs.amax(1, keepdim=True)
    step = (top - low) / LogTile(8).steps
    return (low + step * ((logs - low) / step).round()).exp().flatten()


# --- training ---

_TENSOR = "E4M3, one scale a tensor"


def _training(setting: Setting) -> dict[str, Spread]:
    coarse = cast("e4m3fn/tensor/fp32")
    out = format("bfloat16")
    spec = LinearSpec(Gemm(coarse, coarse, out=out), Gemm(coarse, coarse, out=out), Gemm(coarse, coarse))
    arms = [recipe("bf16"), recipe("fp8-block"), Recipe(_TENSOR, "E4M3 everywhere", "for comparison", spec)]
    return {arm.name: over_seeds(arm, setting, steps=200) for arm in arms}


# --- tables ---


def _depth_table(depth: list[dict[str, float]]) -> dict[str, Any]:
    rows = [[row["k"], row["plain"], row["plain worst"], row["promoted"], row["promoted worst"]] for row in depth]
    columns = ["K", "13 bits throughout: mean", "worst", "promoted every 128: mean", "worst"]
    return {"title": "Relative error of products of positive E4M3 numbers on a modelled Hopper", "columns": columns, "rows": rows}  # fmt: skip


def _message_table(tiles: dict[str, dict[str, float]]) -> dict[str, Any]:
    names = list(tiles["Gaussian"])
    rows = [[title, *errors.values()] for title, errors in tiles.items() if title != "bias"]
    title = "Tiles of 128: mean square error over mean square"
    return {"title": title, "columns": ["values", *names], "rows": rows}


def _training_table(losses: dict[str, Spread], gaps: dict[str, float]) -> dict[str, Any]:
    rows = [[name, spread.mean, gaps[name], spread.listed] for name, spread in losses.items()]
    return {
        "title": "A small Llama, 200 steps",
        "columns": ["recipe", "loss", "above bf16, %", "by seed"],
        "rows": rows,
    }


def _plot(depth: list[dict[str, float]]) -> dict[str, Any]:
    x = [row["k"] for row in depth]
    series = [{"name": name, "x": x, "y": [row[key] for row in depth]} for name, key in (("13 bits throughout", "plain"), ("promoted every 128", "promoted"))]  # fmt: skip
    return {"title": "Error of a product against its length", "x": "K", "y": "relative error", "log_x": True, "log_y": True, "series": series}  # fmt: skip


_NOTES = (
    "The accumulator is a model (32 products aligned, 13 fraction bits, truncated), on the paper's evidence; products of "
    "positive numbers show its drift most.",
    "Training multiplies with float32 sums: the emulated accumulator would take hours at this size.",
    "Tiles are multiplied by the reciprocal of their scale, as DeepGEMM does; the released inference kernel divides.",
    "The 671-billion-parameter model, its network and its kernels are out of reach; cache sizes are computed.",
)

STUDY = Study(
    number=11,
    title="DeepSeek-V3's FP8",
    paper="Zhao et al. 2025, Insights into DeepSeek-V3: Scaling Challenges and Reflections on Hardware for AI Architectures",
    claim="Tiles of 1x128 and 128x128 train within 0.25 % of bfloat16; Hopper's accumulator must be promoted every 128 products; "
    "logarithmic tiles of 8 bits send activations better than E4M3.",
    baseline="bfloat16; one scale a tensor; sums that stay in the tensor core; E4M3 messages",
    treatment="fine tiles; promotion every 128; LogFMT-8 and -10, rounded by value",
    measure="validation loss over three seeds; error of long products; error and bias of tiles",
    expected="loss within 0.5 %; ten times less error at K = 16384; LogFMT-8 below E4M3, LogFMT-10 about bfloat16",
    run=run,
    needs=("data",),
)

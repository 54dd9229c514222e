"""Study 91: one integer engine for 2 to 16 bits, and FP16 fine-tuning of the last layer where the data have shifted."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from narrowcast.accumulate.digits import digit_matmul, products_per_cycle
from narrowcast.formats import format
from narrowcast.ptq import LeastError
from narrowcast.ptq.recipe import PtqRecipe, Scheme
from narrowcast.quantize import cast
from narrowcast.studies.study import Outcome, Setting, Study, at_least, at_most, equal
from narrowcast.studies.vision import SmallCnn, digits, quantized, score, trained
from narrowcast.workloads import Images

_WIDTHS = (16, 8, 4, 2)
_TURN = 25.0  # degrees by which the shifted digits are rotated


def _recipe(bits: int, keep: tuple[str, ...] = ()) -> PtqRecipe:
    scheme = Scheme(cast(f"int{bits}/row/fp32"), cast(f"int{max(bits, 2)}/tensor/fp32"), static=True)
    return PtqRecipe(f"int{bits}", "", "", scheme, search=LeastError(2.0, 40), keep_wide=keep)


def _cycles(model: nn.Module, bits: dict[str, int]) -> float:
    """Return cycles per picture on the ideal array: multiplications over products per cycle, layer by layer."""
    places = {"convs.0": 14 * 14, "convs.1": 7 * 7, "convs.2": 4 * 4, "head": 1}
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return sum(sizes[f"{name}.weight"] * count / products_per_cycle(bits[name]) for name, count in places.items())


def _mixed(model: nn.Module, calibration: Images) -> tuple[nn.Module, dict[str, int]]:
    """Return the network with 8 bits in the first and last layer and 4 between, in two passes."""
    inner = quantized(model, _recipe(4, ("convs.0", "head")), calibration)
    return quantized(inner, _recipe(8, ("convs.1", "convs.2")), calibration), {
        "convs.0": 8,
        "convs.1": 4,
        "convs.2": 4,
        "head": 8,
    }


def _turned(images: Images) -> Images:
    """Return the pictures rotated about their centre."""
    angle = torch.deg2rad(torch.tensor(_TURN))
    turn = torch.stack(
        [torch.stack([angle.cos(), -angle.sin(), angle * 0]), torch.stack([angle.sin(), angle.cos(), angle * 0])]
    )
    grid = F.affine_grid(turn.expand(len(images), 2, 3), list(images.pixels.shape), align_corners=False)
    return Images(F.grid_sample(images.pixels, grid, padding_mode="border", align_corners=False), images.labels)


def _features(model: nn.Module, images: Images) -> Tensor:
    """Return what the last layer sees."""
    seen: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))  # type: ignore[union-attr]
    with torch.no_grad():
        for pixels, _ in images.batches(250):
            model(pixels)
    handle.remove()
    return torch.cat(seen)


def _tune_head(model: nn.Module, images: Images, half: bool, steps: int) -> nn.Module:
    """Train the last layer alone by gradient descent, every value of it rounded to float16 where ``half`` is set."""
    tuned = copy.deepcopy(model)
    fp16 = format("float16")

    def narrow(t: Tensor) -> Tensor:
        return fp16.round(t.detach()) if half else t.detach().clone()

    x = narrow(_features(tuned, images))
    head: Any = tuned.head
    weight, bias = narrow(head.weight), narrow(head.bias)
    scale = 1024.0 if half else 1.0  # keeps small gradients above float16's underflow (sheet 92)
    for _ in range(steps):
        logits = narrow(x @ weight.mT + bias)
        g = narrow((logits.softmax(-1) - F.one_hot(images.labels, logits.shape[-1])) * (scale / len(x)))
        weight = narrow(weight - 0.5 * narrow(g.mT @ x) / scale)
        bias = narrow(bias - 0.5 * narrow(g.sum(0)) / scale)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return tuned


def _exact() -> list[Any]:
    """Every signed 8-bit pair from 4-bit digits; random 16-bit gemms from 8-bit digits."""
    every = torch.arange(-128, 128)
    pairs = digit_matmul(every[:, None], every[:, None], 8, 4)
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-32768, 32768, (24, 64), generator=g) for _ in range(2))
    exact = torch.tensor([[int(sum(int(x) * int(y) for x, y in zip(r, c, strict=True))) for c in b] for r in a])
    return [
        equal("8x8-bit products from 4-bit digits, wrong of 65,536", int((pairs != every[:, None] * every).sum()), 0, claim=False),
        equal("16-bit gemm from four 8-bit gemms, wrong of 576", int((digit_matmul(a, b, 16, 8) != exact).sum()), 0, claim=False),
        equal("products per cycle at 16, 8, 4, 2 bits", str([products_per_cycle(b) for b in _WIDTHS]), "[1, 4, 16, 64]", claim=False),
    ]  # fmt: skip


def run(setting: Setting) -> Outcome:
    """Accuracy against cycles by width, then recovery from a shift of the data."""
    train, test = digits(setting)
    model = trained(SmallCnn, setting, train, epochs=15)
    wide, calibration = score(model, test), train.head(256)
    rows: list[list[Any]] = [["float32", None, wide]]
    nets: dict[str, nn.Module] = {}
    for bits in _WIDTHS:
        nets[f"int{bits}"] = quantized(model, _recipe(bits), calibration)
        rows.append(
            [
                f"int{bits}",
                _cycles(model, dict.fromkeys(("convs.0", "convs.1", "convs.2", "head"), bits)),
                score(nets[f"int{bits}"], test),
            ]
        )
    mix, widths = _mixed(model, calibration)
    rows.append(["8-4-4-8", _cycles(model, widths), score(mix, test)])
    reached = {str(row[0]): row[2] for row in rows}
    cycles = {str(row[0]): row[1] for row in rows}
    setting.note("widths: done")
    turned_train, turned = _turned(train.head(1000)), _turned(test)
    inner = quantized(model, _recipe(8, ("head",)), calibration)
    steps = 5 if setting.quick else 300
    before = score(inner, turned)
    tuned = {half: score(_tune_head(inner, turned_train, half, steps), turned) for half in (True, False)}
    checks = [
        at_most("int8 loses against float32, points", wide - reached["int8"], 0.5),
        at_least("mix over int4, points", reached["8-4-4-8"] - reached["int4"], 0.0),
        at_most("cycles of the mix over int8's", cycles["8-4-4-8"] / cycles["int8"], 1.0),
        at_least(
            "recovered on shifted digits by FP16 fine-tuning of the last layer, points", tuned[True] - before, 1.0
        ),
        at_most("FP16 behind float32 fine-tuning, points", tuned[False] - tuned[True], 2.0),
        *_exact(),
    ]
    table = {
        "title": "MNIST",
        "columns": ["precision", "cycles per picture on the ideal array", "accuracy, percent"],
        "rows": rows,
    }
    shift = {"title": f"Digits rotated by {_TURN:g} degrees, int8 network", "columns": ["last layer", "accuracy, percent"],
             "rows": [["as trained", before], ["fine-tuned in FP16", tuned[True]], ["fine-tuned in float32", tuned[False]]]}  # fmt: skip
    plot = {"title": "Accuracy against cycles", "x": "cycles per picture", "y": "accuracy, percent", "log_x": True, "log_y": False,
            "series": [{"name": "precision", "mode": "labels", "x": [r[1] for r in rows[1:]], "y": [r[2] for r in rows[1:]], "text": [r[0] for r in rows[1:]]}]}  # fmt: skip
    notes = (
        "Only the abstract of the paper was to be had: the digit array is a generic construction, its cycles ideal, and the FPGA figures are the paper's alone.",
        "Fine-tuning keeps no float32 master: weights, gradients and activations of the last layer are all rounded to float16; the loss is scaled by 1024.",
    )
    return Outcome(tuple(checks), (table, shift), (plot,), notes)


STUDY = Study(
    number=91,
    title="One integer engine for 2 to 16 bits, and learning on the device",
    paper="Huang et al. 2024, A Precision-Scalable RISC-V DNN Processor with On-Device Learning Capability at the Extreme Edge",
    claim="Products of any width from one array trade accuracy for cycles layer by layer, and FP16 fine-tuning of the last layer restores accuracy after a shift.",
    baseline="float32; INT8 throughout; the last layer as trained",
    treatment="INT16, 8, 4, 2 and a mix by layer; the last layer fine-tuned in FP16 on 1,000 shifted digits",
    measure="accuracy of a small CNN on 5,000 MNIST test digits; cycles per picture of the ideal array",
    expected="INT8 within half a point; the mix beats INT4 in fewer cycles than INT8; FP16 fine-tuning within 2 points of float32's",
    run=run,
    needs=("data",),
)

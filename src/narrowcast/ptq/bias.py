"""Bias correction: take the mean error of every output channel back in its bias.

``b <- b - (q - w) E[x]``: rounding moves the mean of the outputs, which no later layer expects.
Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2 (means
over calibration data here); sheet 16.
"""

import torch
from torch import Tensor, nn

from narrowcast.ptq.blocks import Forward
from narrowcast.ptq.observe import Watch
from narrowcast.ptq.targets import Target, find_targets


@torch.no_grad()
def correct_biases(
    model: nn.Module, original: dict[str, Tensor], forwards: list[Forward], keep_wide: tuple[str, ...]
) -> int:
    """Correct the biases of ``model``'s narrowed layers in place; return how many layers were.

    Args:
        model: a quantized model, not rotated; layers without a bias get one.
        original: the weights before, by parameter name.
        forwards: each runs the model on one calibration batch.
        keep_wide: as for `find_targets`.
    """
    targets = [t for t in find_targets(model, keep_wide)[0] if t.kind in ("Linear", "Conv2d")]
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(target: Target, number: int, rows: Tensor) -> None:
        sums[target.name] = sums.get(target.name, 0) + rows.float().sum(0)
        counts[target.name] = counts.get(target.name, 0) + len(rows)

    with Watch(targets, note):
        for forward in forwards:
            forward()
    for target in targets:
        if target.name not in sums:
            continue
        moved = (target.matrices()[0] - original[target.name].flatten(1)) @ (sums[target.name] / counts[target.name])
        module = model.get_submodule(target.module)
        if module.bias is None:
            module.bias = nn.Parameter(torch.zeros_like(moved), requires_grad=False)
        module.bias -= moved  # type: ignore[operator]
    return len(sums)

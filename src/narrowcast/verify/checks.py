"""Whether `native` does on this machine what `emulate` says it does: every recipe, many shapes, hard inputs.

- *Codes and scales* of all six operands of a linear layer, each by itself and both orientations of a tensor at once,
  as layers make them; kernels against plain PyTorch: bit for bit.
- *Passes* that make a tensor and its codes at once, and gradients from kept codes (`fused`): bit for bit.
- *Products*, library against float64 of the decoded operands: float32's within what the accumulator may lose (`bound`);
  infinities and NaN where they belong. In 16 bits: float32's rounding where the accumulator's model gives float32's.
- *The accumulator's model*: how many elements of those products it gives bit for bit on a GPU.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from narrowcast import backend
from narrowcast.kernels.plan import Plan
from narrowcast.names import dtype_name
from narrowcast.nn.context import Context
from narrowcast.nn.linear import Linear
from narrowcast.nn.native import GEMMS, choices
from narrowcast.nn.spec import OPERANDS, PAIRS, LinearSpec
from narrowcast.ops import Reuse
from narrowcast.quantize import QTensor
from narrowcast.recipes import Recipe, recipe
from narrowcast.verify import fused
from narrowcast.verify.finding import Finding
from narrowcast.verify.inputs import INPUTS
from narrowcast.verify.products import check_products

SHAPES = ((64, 96, 128), (40, 24, 72), (1, 16, 256))  # tokens, outputs, inputs
SMALL = ((24, 16, 48),)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # of the tensors; the first one for every shape


def verify(
    names: list[str],
    device: torch.device,
    *,
    shapes: tuple[tuple[int, int, int], ...] = SHAPES,
    seed: int = 0,
    note: Callable[[str], None] = lambda _: None,
) -> list[Finding]:
    """Return a finding for each recipe that narrows linear layers.

    Args:
        names: recipes.
        device: where the kernels run; a CPU under TRITON_INTERPRET=1.
        shapes: tokens, outputs and inputs of the layers.
        seed: of the inputs and the random bits.
        note: called with the name of each recipe as it begins.
    """
    found = []
    for name in names:
        chosen = recipe(name)
        if chosen.linear is not None:
            note(name)
            found.append(_verify(chosen, chosen.linear, device, shapes, seed))
    return found


@torch.no_grad()
def _verify(
    chosen: Recipe, spec: LinearSpec, device: torch.device, shapes: tuple[tuple[int, int, int], ...], seed: int
) -> Finding:
    made = dict(zip(GEMMS, choices(spec, "auto", device, f"recipe {chosen.name}"), strict=True))
    finding = Finding(chosen.name, {g: c.kernel if c.plan else f"emulated ({c.why})" for g, c in made.items()})
    plans = {g: c.plan for g, c in made.items() if c.plan is not None}
    for shape in shapes:
        for kind, harden in INPUTS.items():
            for dtype in DTYPES if shape == shapes[0] else DTYPES[:1]:
                generator = torch.Generator(device).manual_seed(seed)
                m, n, k = shape
                x, w, g = (
                    harden(torch.randn(*s, generator=generator, device=device)).to(dtype)
                    for s in ((m, k), (n, k), (m, n))
                )
                where = f"{kind} {dtype_name(dtype)} [{m}, {k}] by [{n}, {k}]"
                context = Linear(nn.Linear(k, n, bias=False, device=device), spec, "verify", seed).context
                narrow = _codes(finding, context, spec, plans, (x, w, g), where)
                check_products(finding, plans, narrow, where)
    if plans:
        fused.check_all(finding, chosen, device, seed, shapes == SMALL)
    return finding


def _codes(
    finding: Finding,
    context: Context,
    spec: LinearSpec,
    plans: dict[str, Plan],
    tensors: tuple[Tensor, Tensor, Tensor],
    where: str,
) -> dict[str, QTensor]:
    """Compare every operand that kernels cast, and return what they gave; reused ones turned."""
    x, w, g = tensors
    wide = {"fwd.x": x, "fwd.w": w, "dgrad.g": g, "dgrad.w": w.mT, "wgrad.g": g.mT, "wgrad.x": x.mT}
    made: dict[str, QTensor] = {}
    for label in OPERANDS:
        gemm, tensor = label.split(".")
        if gemm not in plans:
            continue
        cast = spec.operand(label)
        if isinstance(cast, Reuse):
            made[label] = backend.transposed(made[PAIRS[tensor][0]])
            continue
        source, stream, history, what = context.ready(
            getattr(spec, gemm), label, cast, wide[label], OPERANDS.index(label) // 2
        )
        histories = [None if history is None else history.clone() for _ in "ab"]
        made[label] = replace(backend.narrow(cast, source, stream, histories[0], what), shape=tuple(wide[label].shape))
        finding.code(made[label], cast.quantize(source, stream, histories[1], what), f"{label} of {where}")
    for one, other in PAIRS.values():
        if one in made and other in made:
            for label, found in zip((one, other), context.narrow_both(spec, one, other, wide[one]), strict=True):
                finding.code(found, made[label], f"{label} with {one} of {where}")
    return made

"""Whether `native` does on this machine what `emulate` says it does: every recipe, many shapes, hard inputs.

- *Codes and scales* of all six operands of a linear layer, each by itself and both orientations of a tensor at once,
  as layers make them; kernels against plain PyTorch: bit for bit.
- *Products*, library against float64 of the decoded operands: within what the accumulator may lose (`bound`).
- *The accumulator's model*, where a tensor core has one: how many float32 products it gives bit for bit.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast import backend
from narrowcast.accumulate import Codes
from narrowcast.kernels.plan import BLOCKS, Plan
from narrowcast.nn.context import Context
from narrowcast.nn.linear import Linear
from narrowcast.nn.native import GEMMS, choices
from narrowcast.nn.spec import OPERANDS, LinearSpec
from narrowcast.ops import Reuse
from narrowcast.quantize import QTensor
from narrowcast.recipes import recipe

SHAPES = ((64, 96, 128), (40, 24, 72), (1, 16, 256))  # tokens, outputs, inputs
SMALL = ((24, 16, 40),)
_FLOAT32 = 2.0**-24
_PAIRS = (("fwd.x", "wgrad.x"), ("fwd.w", "dgrad.w"), ("dgrad.g", "wgrad.g"))  # both orientations of each tensor


@dataclass
class Finding:
    """What was found of one recipe.

    Attributes:
        recipe: its name.
        kernels: what runs each gemm; its reason in brackets where it is emulated.
        codes, differing: operands compared, and how many differ in a code or a scale.
        products, beyond: products compared, and how many elements left their bound or are finite where they must not.
        worst: largest error as a share of its bound.
        equal, modelled: elements that the accumulator's model gives bit for bit, and how many it was asked for.
        first: the first difference, in words.
    """

    recipe: str
    kernels: dict[str, str]
    codes: int = 0
    differing: int = 0
    products: int = 0
    beyond: int = 0
    worst: float = 0.0
    equal: int = 0
    modelled: int = 0
    first: str = field(default="")

    @property
    def ok(self) -> bool:
        """Whether native is emulate."""
        return self.differing == 0 and self.beyond == 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "ok": self.ok}

    def note(self, what: str) -> None:
        """Keep the first difference."""
        self.first = self.first or what


# --- inputs ---


def _normal(x: Tensor) -> Tensor:
    return x


def _outliers(x: Tensor) -> Tensor:
    x[:, :: max(x.shape[1] // 3, 1)] *= 1e4
    return x


def _many_binades(x: Tensor) -> Tensor:
    rows = torch.arange(x.shape[0], device=x.device) % 41 - 20
    return x * torch.exp2(rows.float())[:, None]


def _zero_rows(x: Tensor) -> Tensor:
    x[::3] = 0.0
    x[-1, 0] = -0.0
    return x


def _subnormal(x: Tensor) -> Tensor:
    return x * 2.0**-130


def _not_a_number(x: Tensor) -> Tensor:
    x[x.shape[0] // 2, x.shape[1] // 3] = float("nan")
    return x


def _infinite(x: Tensor) -> Tensor:
    x[0, -1], x[-1, 0] = float("inf"), float("-inf")
    return x


INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": _normal,
    "outliers": _outliers,
    "many binades": _many_binades,
    "zero rows": _zero_rows,
    "subnormal": _subnormal,
    "NaN": _not_a_number,
    "infinity": _infinite,
}


# --- the checks ---


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
        spec = recipe(name).linear
        if spec is not None:
            note(name)
            found.append(_verify(name, spec, device, shapes, seed))
    return found


@torch.no_grad()
def _verify(
    name: str, spec: LinearSpec, device: torch.device, shapes: tuple[tuple[int, int, int], ...], seed: int
) -> Finding:
    made = dict(zip(GEMMS, choices(spec, "auto", device, f"recipe {name}"), strict=True))
    finding = Finding(name, {g: c.kernel if c.plan else f"emulated ({c.why})" for g, c in made.items()})
    plans = {g: c.plan for g, c in made.items() if c.plan is not None}
    for shape in shapes:
        for kind, harden in INPUTS.items():
            for dtype in (torch.bfloat16, torch.float32) if shape == shapes[0] else (torch.bfloat16,):
                generator = torch.Generator(device).manual_seed(seed)
                m, n, k = shape
                x, w, g = (
                    harden(torch.randn(*s, generator=generator, device=device)).to(dtype)
                    for s in ((m, k), (n, k), (m, n))
                )
                where = f"{kind} {dtype} [{m}, {k}] by [{n}, {k}]"
                context = Linear(nn.Linear(k, n, bias=False, device=device), spec, "verify", seed).context
                narrow = _codes(finding, context, spec, plans, (x, w, g), where)
                _products(finding, spec, plans, narrow, where, modelled=kind in ("normal", "outliers"))
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
    first = {"x": "fwd.x", "w": "fwd.w", "g": "dgrad.g"}
    made: dict[str, QTensor] = {}
    for label in OPERANDS:
        gemm, tensor = label.split(".")
        if gemm not in plans:
            continue
        cast = spec.operand(label)
        if isinstance(cast, Reuse):
            made[label] = backend.transposed(made[first[tensor]])
            continue
        source, stream, history, what = context.ready(
            getattr(spec, gemm), label, cast, wide[label], OPERANDS.index(label) // 2
        )
        histories = [None if history is None else history.clone() for _ in "ab"]
        made[label] = replace(backend.narrow(cast, source, stream, histories[0], what), shape=tuple(wide[label].shape))
        _compare(finding, made[label], cast.quantize(source, stream, histories[1], what), f"{label} of {where}")
    for one, other in _PAIRS:
        if one in made and other in made:
            for label, found in zip((one, other), context.narrow_both(spec, one, other, wide[one]), strict=True):
                _compare(finding, found, made[label], f"{label} with {one} of {where}")
    return made


def _compare(finding: Finding, found: QTensor, want: QTensor, what: str) -> None:
    finding.codes += 1
    different = difference(found, want)
    if different:
        finding.differing += 1
        finding.note(f"{what}: {different}")


def difference(found: QTensor, want: QTensor) -> str:
    """Return where two quantized tensors differ in what is stored, or nothing. A NaN is a NaN."""
    for part in ("codes", "scales", "tensor_scale"):
        a, b = getattr(found, part), getattr(want, part)
        if a is None or b is None or (part == "scales" and not want.cast.scale.bits):
            continue
        wrong = (a.reshape(b.shape) != b) & ~(a.isnan() & b.isnan()).reshape(b.shape)
        if part == "codes" and bool(wrong.any()):  # the sign of an unscaled NaN is the processor's own
            return f"{part}: {int(wrong.sum())} differ, first at {tuple(wrong.nonzero()[0].tolist())}"
        if bool(wrong.any()):
            return f"{part}: {int(wrong.sum())} differ"
    return ""


def _products(
    finding: Finding,
    spec: LinearSpec,
    plans: dict[str, Plan],
    narrow: dict[str, QTensor],
    where: str,
    modelled: bool,
) -> None:
    for gemm, plan in plans.items():
        a, b = (narrow[label] for label in OPERANDS if label.startswith(f"{gemm}."))
        y = backend.gemm(a, b, plan, torch.float32)
        left, right = (_decoded(q) for q in (a, b))
        depth = min(left.shape[1], right.shape[1])
        left, right = left[:, :depth], right[:, :depth]
        want = left @ right.mT
        limit = bound(plan, depth) * (left.abs() @ right.abs().mT) + 2.0**-120
        error = (y.double() - want).abs()
        finite = want.isfinite()
        wrong = torch.where(finite, ~(error <= limit), y.isfinite())
        finding.products += 1
        if bool(wrong.any()):
            finding.beyond += int(wrong.sum())
            at = tuple(wrong.nonzero()[0].tolist())
            finding.note(f"{gemm} of {where}: {float(y[at]):.9g} at {at}, expected {float(want[at]):.9g}")
        if bool(finite.any()):
            finding.worst = max(finding.worst, float((error / limit)[finite].max()))
        if modelled and plan.units == "fp8" and y.device.type == "cuda":
            finding.equal += int((product(a, b, plan) == y).sum())
            finding.modelled += y.numel()


def _decoded(q: QTensor) -> Tensor:
    """Return the values of all columns, those that padding (and a rotation) filled among them, float64."""
    return replace(q, shape=(q.shape[0], q.padded[1]), dtype=torch.float32).dequantize().double()


def bound(plan: Plan, depth: int) -> float:
    """Return what the sum of ``depth`` products may lose, as a share of the sum of their magnitudes.

    Hopper's FP8 sums cut each of 32 products and the running sum below 13 bits behind the largest exponent, and the sum
    to 13 bits: 34 units of 2**-13 every 32 products, each at most the magnitudes summed so far; with promotion, of each
    128. 16-bit operands lose float32's last bits, cut off; scales cost three roundings more.
    """
    if plan.units != "fp8":
        return 2 * depth * _FLOAT32
    steps = -(-depth // 32) if plan.fast else 4
    return steps * 34 * 2.0**-13 + (depth // 128 + 4) * _FLOAT32


def product(a: QTensor, b: QTensor, plan: Plan) -> Tensor:
    """Return the product as the accumulator's model gives it, float32: block scales inside the sum, others after."""
    left, right = (_as_codes(q) for q in (a, b))
    if plan.tile_a in BLOCKS:
        return plan.accumulator.matmul(left, right)
    a_bare, b_bare = (Codes(c.values, None, c.smallest_normal) for c in (left, right))
    total = plan.accumulator.matmul(a_bare, b_bare)
    assert left.scale is not None
    assert right.scale is not None
    return total * (left.scale[:, :1] * right.scale[:, :1].mT)


def _as_codes(q: QTensor) -> Codes:
    """Return values and scales of FP8 codes, rows that padding filled cut off."""
    values = q.cast.format.decode(q.codes).view(q.padded)
    scale = torch.ones_like(values)
    blocks, _ = q.cast.tile.blocks(scale)
    for factor in q.cast.scale.restore(q.scales, q.tensor_scale):
        blocks.mul_(factor)
    rows = q.shape[0]
    return Codes(values[:rows], scale[:rows], q.cast.format.smallest_normal)

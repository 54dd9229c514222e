"""Whether `native` does on this machine what `emulate` says it does: every recipe, many shapes, hard inputs.

- *Codes and scales* of all six operands of a linear layer, each by itself and both orientations of a tensor at once,
  as layers make them; kernels against plain PyTorch: bit for bit.
- *Products*, float32, library against float64 of the decoded operands: within what the accumulator may lose (`bound`);
  infinities and NaN where they belong.
- *The accumulator's model*: how many elements of those products it gives bit for bit on a GPU.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from narrowcast import backend
from narrowcast.formats import unpack
from narrowcast.kernels.plan import Plan
from narrowcast.nn.context import Context
from narrowcast.nn.linear import Linear
from narrowcast.nn.native import GEMMS, choices
from narrowcast.nn.spec import OPERANDS, LinearSpec
from narrowcast.ops import Reuse
from narrowcast.quantize import QTensor
from narrowcast.recipes import recipe
from narrowcast.verify.inputs import INPUTS
from narrowcast.verify.sums import bound, float32_bound, product

SHAPES = ((64, 96, 128), (40, 24, 72), (1, 16, 256))  # tokens, outputs, inputs
SMALL = ((24, 16, 40),)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)  # of the tensors; the first one for every shape
_PAIRS = (("fwd.x", "wgrad.x"), ("fwd.w", "dgrad.w"), ("dgrad.g", "wgrad.g"))  # both orientations of each tensor


@dataclass
class Finding:
    """What was found of one recipe.

    Attributes:
        recipe: its name.
        kernels: what runs each gemm; its reason in brackets where it is emulated.
        codes, differing: operands compared, and how many differ in a code or a scale.
        products, failed: products compared, and how many have such elements as `beyond` counts.
        beyond: elements of products that lie beyond their bound, or are not the infinity or NaN due.
        worst: largest error as a share of its bound.
        equal, modelled: elements that the accumulator's model gives bit for bit, and how many it was asked for.
        first: the first difference, in words.
    """

    recipe: str
    kernels: dict[str, str]
    codes: int = 0
    differing: int = 0
    products: int = 0
    failed: int = 0
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
            for dtype in DTYPES if shape == shapes[0] else DTYPES[:1]:
                generator = torch.Generator(device).manual_seed(seed)
                m, n, k = shape
                x, w, g = (
                    harden(torch.randn(*s, generator=generator, device=device)).to(dtype)
                    for s in ((m, k), (n, k), (m, n))
                )
                where = f"{kind} {str(dtype).removeprefix('torch.')} [{m}, {k}] by [{n}, {k}]"
                context = Linear(nn.Linear(k, n, bias=False, device=device), spec, "verify", seed).context
                narrow = _codes(finding, context, spec, plans, (x, w, g), where)
                _products(finding, plans, narrow, where)
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
    """Return where two quantized tensors differ in what is stored, or nothing. Of scales, a NaN is a NaN."""
    bits = want.cast.format.bits
    a, b = (unpack(q.codes, bits, q.padded[-1]).view(want.padded) for q in (found, want))
    wrong = (a != b).nonzero()
    if len(wrong):
        at, mask = tuple(wrong[0].tolist()), (1 << bits) - 1
        codes = f"{int(a[at]) & mask:#x}, expected {int(b[at]) & mask:#x}"
        return f"codes: {len(wrong)} differ, first at {at}: {codes}"
    for part in ("scales", "tensor_scale"):
        a, b = getattr(found, part), getattr(want, part)
        if a is None or b is None or (part == "scales" and not want.cast.scale.bits):
            continue
        wrong = (a.reshape(b.shape) != b) & ~(a.isnan() & b.isnan()).reshape(b.shape)
        if bool(wrong.any()):
            return f"{part}: {int(wrong.sum())} differ"
    return ""


def _products(finding: Finding, plans: dict[str, Plan], narrow: dict[str, QTensor], where: str) -> None:
    for gemm, plan in plans.items():
        a, b = (narrow[label] for label in OPERANDS if label.startswith(f"{gemm}."))
        y = backend.gemm(a, b, plan, torch.float32)
        left, right = (_decoded(q) for q in (a, b))
        depth = min(left.shape[1], right.shape[1])
        left, right = left[:, :depth], right[:, :depth]
        want = left @ right.mT
        limit = (bound if y.device.type == "cuda" else float32_bound)(a, b, plan)
        error = (y.double() - want).abs()
        finite = want.isfinite()
        wrong = torch.where(finite, ~(error <= limit), ~_same(y, want))
        finding.products += 1
        if bool(wrong.any()):
            finding.failed += 1
            finding.beyond += int(wrong.sum())
            at = tuple(wrong.nonzero()[0].tolist())
            finding.note(f"{gemm} of {where}: {float(y[at]):.9g} at {at}, expected {float(want[at]):.9g}")
        if bool(finite.any()):
            finding.worst = max(finding.worst, float((error / limit)[finite].max()))
        if y.device.type == "cuda":
            finding.equal += int(_same(product(a, b, plan), y).sum())
            finding.modelled += y.numel()


def _same(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def _decoded(q: QTensor) -> Tensor:
    """Return the values of all columns, those that padding (and a rotation) filled among them, float64."""
    return replace(q, shape=(q.shape[0], q.padded[1]), dtype=torch.float32).dequantize().double()

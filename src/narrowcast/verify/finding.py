"""What was found of a recipe or an optimizer, and how two quantized tensors are compared."""

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from narrowcast.formats import unpack
from narrowcast.quantize import QTensor


@dataclass
class Finding:
    """What was found of one recipe.

    Attributes:
        recipe: its name.
        kernels: what runs each gemm; its reason in brackets where it is emulated.
        codes, differing: operands compared, and how many differ in a code or a scale.
        fused, fused_differing: passes that make a tensor and its codes at once, and gradients made from kept codes.
        products, failed: products compared, and how many have such elements as `beyond` counts.
        beyond: elements of products that lie beyond their bound, or are not the infinity or NaN due.
        written, misrounded: the same products written in 16 bits, and how many have an element beyond its bound.
        rounded, roundings: elements of those that are float32's product rounded once, of all whose float32 product the
            model gives.
        worst: largest error as a share of its bound.
        equal, modelled: elements that the accumulator's model gives bit for bit, and how many it was asked for.
        fp8, beyond_fp8: float32 products whose plan depends on the data (`kernels.rebased`): those that FP8 units took,
            and those with a row that does not fit there.
        first: the first difference, in words.
    """

    recipe: str
    kernels: dict[str, str]
    codes: int = 0
    differing: int = 0
    fused: int = 0
    fused_differing: int = 0
    products: int = 0
    failed: int = 0
    beyond: int = 0
    written: int = 0
    misrounded: int = 0
    rounded: int = 0
    roundings: int = 0
    worst: float = 0.0
    equal: int = 0
    modelled: int = 0
    fp8: int = 0
    beyond_fp8: int = 0
    first: str = field(default="")

    @property
    def ok(self) -> bool:
        """Whether native is emulate."""
        return self.differing == self.fused_differing == self.failed == self.misrounded == 0

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "ok": self.ok}

    def note(self, what: str) -> None:
        """Keep the first difference."""
        self.first = self.first or what

    def code(self, found: QTensor, want: QTensor, what: str) -> None:
        """Count one operand."""
        self.codes += 1
        different = difference(found, want)
        if different:
            self.differing += 1
            self.note(f"{what}: {different}")


def difference(found: QTensor, want: QTensor, signed: bool = True) -> str:
    """Return where two quantized tensors differ in what is stored, or nothing. Of scales, a NaN is a NaN.

    Args:
        found, want: by one cast.
        signed: whether the codes of NaN must be equal; those of a computed NaN need not, its sign is the processor's.
    """
    bits = want.cast.format.bits
    a, b = (unpack(q.codes, bits, q.padded[-1]).view(want.padded) for q in (found, want))
    differ = a != b
    if not signed and bool(differ.any()):
        values = [want.cast.format.decode(codes) for codes in (a, b)]
        differ &= ~(values[0].isnan() & values[1].isnan())
    wrong = differ.nonzero()
    if len(wrong):
        at, mask = tuple(wrong[0].tolist()), (1 << bits) - 1
        codes = f"{int(a[at]) & mask:#x}, expected {int(b[at]) & mask:#x}"
        return f"codes: {len(wrong)} differ, first at {at}: {codes}"
    for part in ("scales", "tensor_scale"):
        a, b = getattr(found, part), getattr(want, part)
        if a is None or b is None or (part == "scales" and not want.cast.scale.bits):
            continue
        wrong = ~same(a.reshape(b.shape), b)
        if bool(wrong.any()):
            return f"{part}: {int(wrong.sum())} differ"
    return ""


def same(a: Tensor, b: Tensor) -> Tensor:
    """Return where two tensors are equal; a NaN is a NaN."""
    return (a == b) | (a.isnan() & b.isnan())


def different(found: Tensor, want: Tensor) -> str:
    """Return where two tensors differ, or nothing; a NaN is a NaN."""
    wrong = (~same(found, want)).nonzero()
    if not len(wrong):
        return ""
    at = tuple(wrong[0].tolist())
    return f"{len(wrong)} differ, first at {at}: {float(found[at]):.9g}, expected {float(want[at]):.9g}"

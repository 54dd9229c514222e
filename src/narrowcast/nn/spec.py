"""The precision of a linear layer, as data: three gemms, six operands."""

from dataclasses import dataclass, replace

from narrowcast.errors import InputError
from narrowcast.ops import Gemm, Reuse
from narrowcast.quantize import Cast

#: label of each operand: (gemm, tensor). x [M, in], w [out, in], g [M, out] = gradient of the output.
OPERANDS = ("fwd.x", "fwd.w", "dgrad.g", "dgrad.w", "wgrad.g", "wgrad.x")
#: the two operands of each tensor: its first, and that of its other orientation, which may reuse it
PAIRS = {"x": ("fwd.x", "wgrad.x"), "w": ("fwd.w", "dgrad.w"), "g": ("dgrad.g", "wgrad.g")}
WIDE_BITS = 16.0  # a wide tensor kept for backward is a bfloat16 one in real mixed-precision training


@dataclass(frozen=True)
class LinearSpec:
    """The three gemms of a linear layer.

    ``fwd: y = x w^T`` (along in), ``dgrad: dx = g w`` (along out), ``wgrad: dw = g^T x`` (along tokens).
    Each operand is cast from its wide source, or reuses the first cast of the same tensor (`Reuse`).

    Attributes:
        remade: tensors whose codes the backward pass makes again instead of keeping them, the same bits. ``"w"``: from
            the weight, which lives anyway, at the cost of one more reading. ``"x"``: from the wide input, which
            compiled code makes again from whatever it keeps of it, where that takes elementwise steps only (a norm or a
            gate whose own inputs are kept); elsewhere codes are kept, which are half as large. ``"x-alive"``: from the
            wide input, which in compiled code lives anyway (attention keeps its output), as the weight does.
    """

    fwd: Gemm
    dgrad: Gemm
    wgrad: Gemm
    remade: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for tensor in self.remade:
            if tensor not in ("w", "x", "x-alive"):
                raise InputError(f"remade {tensor!r}: expected 'w', 'x' or 'x-alive'")
            if any(self.cast(label).scale.delayed for label in OPERANDS if label[-1] == tensor[0]):
                raise InputError(f"remade {tensor!r}: a scale comes from a history, which may move on; keep the codes")
        for label, _ in PAIRS.values():
            if isinstance(self.operand(label), Reuse):
                raise InputError(f"operand {label} cannot reuse a cast: it is the first of its tensor")
        for gemm, tensor in (("fwd", "w"), ("dgrad", "g")):
            if getattr(self, gemm).transform and isinstance(self._later(tensor), Reuse):
                raise InputError(f"operand {tensor} of {gemm} is rotated, so its codes cannot be reused elsewhere")
        for label in OPERANDS:
            operand, gemm = self.operand(label), getattr(self, label.split(".")[0])
            if isinstance(operand, Reuse) and gemm.accumulator.on_codes:
                first = getattr(self, PAIRS[label[-1]][0].split(".")[0])
                if operand.then is not None or not first.accumulator.on_codes:
                    raise InputError(
                        f"operand {label} reuses decoded values, but its gemm's accumulator works on codes; cast it "
                        "from its wide source instead"
                    )
        if self.fwd.transform and isinstance(self.operand("wgrad.x"), Reuse):
            raise InputError("operand x of fwd is rotated, so its codes cannot be reused elsewhere")

    def operand(self, label: str) -> Cast | Reuse:
        """Return the cast of operand ``label``, one of `OPERANDS`."""
        gemm = label.split(".")[0]
        side = "b" if label in ("fwd.w", "dgrad.w", "wgrad.x") else "a"
        operand: Cast | Reuse = getattr(getattr(self, gemm), side)
        return operand

    def cast(self, label: str) -> Cast:
        """Return the cast whose codes operand ``label`` consists of, looking through `Reuse`."""
        operand = self.operand(label)
        if isinstance(operand, Cast):
            return operand
        return operand.then or self.cast(PAIRS[label[-1]][0])

    def resolved(self, name: str) -> Gemm:
        """Return gemm ``name`` with each operand the cast whose codes it consists of; a shared transform stays."""
        gemm: Gemm = getattr(self, name)
        a, b = (label for label in OPERANDS if label.startswith(f"{name}."))
        return replace(gemm, a=self.cast(a), b=self.cast(b))

    def remakes(self, tensor: str) -> bool:
        """Whether codes of ``tensor`` ("x" or "w") are made again, from whatever."""
        return any(made[0] == tensor for made in self.remade)

    def _later(self, tensor: str) -> Cast | Reuse:
        return self.operand(PAIRS[tensor][1])

    @property
    def random(self) -> bool:
        """Whether any of the gemms draws random bits."""
        return self.fwd.random or self.dgrad.random or self.wgrad.random

    @property
    def history(self) -> int:
        """Length of the longest amax history that any operand keeps, 0 for none."""
        delays = [self.cast(label).scale.delayed for label in OPERANDS]
        return max((d.length for d in delays if d is not None), default=0)

    def saved_bits(self, tensor: str, shape: tuple[int, ...]) -> float:
        """Return bits per element kept for backward of ``tensor`` ("x" or "w") of ``shape``, as hardware would.

        Codes where the backward pass reuses them; else the wide source, counted as bfloat16. Float32 stays 32. Nothing
        where it is remade from what lives anyway.
        """
        if self.remakes(tensor):
            return 0.0
        first, label = PAIRS[tensor]
        cast = self.cast(first)
        if isinstance(self.operand(label), Reuse):
            return cast.bits_per_element(shape)
        return 32.0 if cast.is_identity else WIDE_BITS

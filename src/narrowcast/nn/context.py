"""What a layer's casts need besides the tensors: its name, the keys of its random bits, its step, its histories."""

from dataclasses import dataclass, replace

from torch import Tensor

from narrowcast import backend
from narrowcast.accumulate import Codes
from narrowcast.formats import Stream
from narrowcast.nn.spec import OPERANDS, LinearSpec
from narrowcast.ops import Gemm, contraction_source
from narrowcast.quantize import Cast, QTensor

_SIGNS = 8  # stream numbers of the shared transforms follow the six operands


@dataclass(frozen=True)
class Context:
    """Name, keys of random bits, step and histories of one layer, and what multiplies its three products."""

    site: str
    seed: int
    key: int
    step: Tensor | None
    history: Tensor | None
    alpha: float = 1.0

    def stream(self, number: int) -> Stream | None:
        """Return the stream of operand (or shared transform) ``number`` of this layer."""
        if self.step is None:
            return None
        return Stream(self.seed, self.key << 4 | number, self.step)

    def cast(self, gemm: Gemm, label: str, operand: Cast, x: Tensor, shared: int) -> tuple[Tensor, Tensor | Codes]:
        """Return (source after padding and rotation, result of the cast) for operand ``label``.

        The result is `Codes` where the gemm's accumulator works on them.
        """
        source, stream, history, what = self._ready(gemm, label, operand, x, shared)
        narrow = operand.split if gemm.accumulator.on_codes else operand.apply
        return source, narrow(source, stream, history, what)

    def narrow(self, spec: LinearSpec, label: str, wide: Tensor) -> QTensor:
        """Return codes and scales of operand ``label`` by kernels, cast from ``wide``."""
        position, operand = OPERANDS.index(label) // 2, spec.operand(label)
        assert isinstance(operand, Cast)
        gemm = (spec.fwd, spec.dgrad, spec.wgrad)[position]
        made = backend.narrow(operand, *self._ready(gemm, label, operand, wide, position))
        return replace(made, shape=tuple(wide.shape))  # what was padded before the cast is cut with the rest

    def operand(
        self, spec: LinearSpec, label: str, wide: Tensor, first: Tensor | None
    ) -> tuple[Tensor, Tensor | Codes]:
        """Return (source, result) of operand ``label``, from ``wide`` or, where it reuses, from ``first``."""
        position = OPERANDS.index(label) // 2
        gemm = (spec.fwd, spec.dgrad, spec.wgrad)[position]
        operand = spec.operand(label)
        if isinstance(operand, Cast):
            return self.cast(gemm, label, operand, wide, position)
        assert first is not None
        again = gemm.casts[OPERANDS.index(label) % 2]
        return self.cast(gemm, label, again, first, position)

    def _ready(
        self, gemm: Gemm, label: str, operand: Cast, x: Tensor, shared: int
    ) -> tuple[Tensor, Stream | None, Tensor | None, str]:
        """Return source, random bits, history and name for the cast of operand ``label``."""
        number = OPERANDS.index(label)
        what = f"layer {self.site!r}, operand {label}"
        source = contraction_source(gemm, x, self.stream(_SIGNS + shared), what)
        history = None
        if operand.scale.delayed is not None and self.history is not None:
            history = self.history[number, : operand.scale.delayed.length + 1]
        return source, self.stream(number), history, what

"""Scales as compressed-tensors, transformers and vLLM compute them: values are divided by them, in the model's dtype.

The rules of `scales` multiply by a float32 reciprocal. That is one rounding more than a division, and now and then
another code: at int8's ``amax / 127.5`` the largest value of every row lies on a tie. To agree bit for bit with a tool
that divides, these rules take the reciprocal in float64: the float32 (or 16-bit) value of a product with it is the
correctly rounded quotient. (A quotient of two 24-bit numbers keeps 2**-49 of itself away from the midpoints between
24-bit numbers; the product is off by 2**-52 at most.) The *carrier* is the dtype that those tools compute in.

Source: compressed-tensors 0.20, ``quantization/utils/helpers.py`` and ``lifecycle/forward_helpers.py``
(export-reference, section 3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Format, Integer, Minifloat
from narrowcast.scaling.rule import Scale, ScaleRule
from narrowcast.scaling.scales import poisoned
from narrowcast.scaling.second_level import SecondLevel

CARRIERS = {"fp32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TINY = torch.finfo(torch.float32).tiny
_SMALLEST_BLOCK = 0.125  # replaces a block scale of zero (compressed-tensors' "eps" of e4m3fn)


def half_range(element: Format) -> float:
    """Return half the distance between the ends of ``element``: 127.5 for ``int8_full``, its maximum if symmetric."""
    if isinstance(element, Integer):
        return (element.high - element.low) / 2 * element.smallest
    return element.max


@dataclass(frozen=True)
class Divided(ScaleRule):
    """A scale amax / half the range, divided by; scale, quotient and product rounded to the carrier.

    A scale that comes out as zero is the carrier's epsilon, so there is no smallest normal scale.

    Attributes:
        carrier: ``fp32``, ``bfloat16`` or ``float16``.
        fixed: the scale itself, whatever the data (a calibrated one), or None for the tile's own.
    """

    carrier: str = "fp32"
    fixed: float | None = None

    def __post_init__(self) -> None:
        _check(self.carrier, self.fixed)

    def scale(self, amax: Tensor, element: Format) -> Scale:
        """Return scales that the carrier holds, as float32."""
        dtype = CARRIERS[self.carrier]
        if self.fixed is None:
            exact = amax.to(dtype) / torch.full_like(amax, half_range(element), dtype=dtype)
            scale = torch.where(exact == 0, torch.finfo(dtype).eps, exact.float())
        else:
            scale = torch.full_like(amax, self.fixed)
        scale = poisoned(scale, amax)
        return Scale(scale, (scale,), scale.double().reciprocal(), quotient=dtype)

    def made_for(self, amax: float, element: Format) -> "Divided":
        """Return the rule with its scale fixed for values up to ``amax``."""
        return Divided(self.carrier, float(Divided(self.carrier).scale(torch.tensor(amax), element).stored))

    def restore(self, stored: Tensor, tensor: Tensor | None) -> tuple[Tensor, ...]:
        """The stored scale multiplies back."""
        return (stored,)

    @property
    def bits(self) -> int:
        """One number of the carrier."""
        return 8 * CARRIERS[self.carrier].itemsize

    def __str__(self) -> str:
        return f"divide-{self.carrier}{_fixed(self.fixed)}"


@dataclass(frozen=True)
class DividedTwoLevel(SecondLevel):
    """NVFP4's two levels as compressed-tensors computes them.

    The tensor's multiplier is ``G = max(element) * max(scale) / amax``, a block's scale ``round(G * (amax / max))``
    with the inner quotient in the carrier and 0.125 in place of zero, and a value is divided by ``scale / G``, in
    float32. What is kept for the tensor multiplies, as everywhere here: ``1 / G``, in float64, whose reciprocal is
    exactly G again (half of all float32 numbers are no float32's reciprocal).

    Attributes:
        format: of the block scales.
        carrier: dtype of the tensor: ``fp32``, ``bfloat16`` or ``float16``.
        fixed: the tensor's scale ``1 / G``, whatever the data (a calibrated one), or None for its own; larger blocks
            saturate the block scale.
    """

    format: Minifloat
    carrier: str = "fp32"
    fixed: float | None = None

    def __post_init__(self) -> None:
        _check(self.carrier, self.fixed)
        self.check_range()

    def scale(self, amax: Tensor, element: Format) -> Scale:
        """Return block codes and the tensor's scale."""
        whole = amax.amax() if amax.numel() else amax.sum()
        own = self.multiplier(whole, element).double().reciprocal()
        tensor = own if self.fixed is None else torch.full_like(own, self.fixed)
        dtype = CARRIERS[self.carrier]
        exact = (amax.to(dtype) / torch.full_like(amax, element.max, dtype=dtype)).float() * _multiplier_of(tensor)
        block = self.format.round(exact.clamp_max(self.format.max))
        block = poisoned(torch.where(block == 0, _SMALLEST_BLOCK, block), amax)
        tensor = poisoned(tensor, whole)
        (back,) = self.factors(block, tensor)
        return Scale(self.format.encode(block), (back,), back.double().reciprocal(), tensor=tensor)

    def multiplier(self, amax: Tensor, element: Format) -> Tensor:
        """Return G for the largest magnitude of a tensor, 0-d float32."""
        top = torch.full_like(amax, element.max * self.format.max)
        return (top / amax.clamp_min(_TINY)).nan_to_num(nan=1.0, posinf=1.0)

    def made_for(self, amax: float, element: Format) -> "DividedTwoLevel":
        """Return the rule with the tensor's scale fixed for values up to ``amax``."""
        multiplier = self.multiplier(torch.tensor(amax), element)
        return DividedTwoLevel(self.format, self.carrier, float(multiplier.double().reciprocal()))

    def factors(self, values: Tensor, tensor: Tensor) -> tuple[Tensor, ...]:
        """Return the block scales, divided by the tensor's multiplier."""
        return (values / _multiplier_of(tensor).expand_as(values),)

    def __str__(self) -> str:
        return f"{self.format.name}+divide-{self.carrier}{_fixed(self.fixed)}"


def _multiplier_of(tensor: Tensor) -> Tensor:
    return tensor.double().reciprocal().float()


def _check(carrier: str, fixed: float | None) -> None:
    if carrier not in CARRIERS:
        raise InputError(f"scale divide-{carrier}: unknown carrier; expected {', '.join(CARRIERS)}")
    if fixed is not None and not 0 < fixed < float("inf"):
        raise InputError(f"scale divide-{carrier}: expected a finite fixed scale above 0, found {fixed}")


def _fixed(scale: float | None) -> str:
    return "" if scale is None else f"-fixed{scale!r}"

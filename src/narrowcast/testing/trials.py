"""A trial: what a foreign function made of some inputs, to be held against what a `Rounder` would have made of them.

Two numbers agree when their bits agree: codes as integers, values as float64 patterns. All NaNs count alike (their
signs and payloads are nobody's standard), and a zero's sign counts where the format has a negative zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from narrowcast.formats import Format, Integer, Minifloat
from narrowcast.testing.inputs import CLASSES, bits_of
from narrowcast.testing.rounder import Rounder

Way_ = TypeVar("Way_", contravariant=True)
NAN, UNHELD = -2, -1  # keys of a NaN, and of a value that the format has no code for
_SAMPLE = 1200  # inputs of each class and either sort, disagreeing and agreeing, that the search looks at


@dataclass(frozen=True)
class Difference:
    """One input on which the two disagree, as bits: ``input``, ``expected`` and ``found`` in hexadecimal.

    ``value``: the input as a number; ``input_class``: which of `CLASSES` it is in; ``place``: where it stood, or "".
    """

    input: str
    value: float
    expected: str
    found: str
    input_class: str
    place: str = ""


class Trial(Protocol[Way_]):
    """Inputs, each of a class, with a foreign function's answers."""

    @property
    def classes(self) -> Tensor:
        """Class of each answer, int64 ``[n]``, an index of ``names``."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""

    def agree(self, way: Way_) -> Tensor:
        """Return (bool ``[n]``) where the answers are those of ``way``."""

    def sample(self, agree: Tensor) -> Self:
        """Return a smaller trial with some answers of either sort, where ``agree`` says which is which."""

    def difference(self, index: int, way: Way_) -> Difference:
        """Return answer ``index`` beside that of ``way``."""


def spread(mask: Tensor, count: int) -> Tensor:
    """Return at most ``count`` indices where ``mask`` holds, evenly spread."""
    found = mask.nonzero().flatten()
    if len(found) <= count:
        return found
    return found[torch.linspace(0, len(found) - 1, count, dtype=torch.float64).long()]


def by_class(classes: Tensor, agree: Tensor) -> Iterator[Tensor]:
    """Yield, for every class that occurs, where answers of it disagree and where they agree."""
    for index in classes.unique().tolist():
        yield (classes == index) & ~agree
        yield (classes == index) & agree


# --- keys: equal keys, equal numbers ---


def value_keys(values: Tensor, signed_zero: bool) -> Tensor:
    """Return int64 keys of float ``values``."""
    wide = torch.where(values.isnan(), float("nan"), values.double())
    return (wide if signed_zero else wide + 0.0).view(torch.int64)


def code_keys(codes: Tensor, fmt: Format) -> Tensor:
    """Return int64 keys of ``codes`` (int64, within the format's bits)."""
    nan = fmt.decode(codes.int()).isnan()
    return codes.masked_fill(nan, NAN)


def keys_of_values(values: Tensor, fmt: Format) -> Tensor:
    """Return the keys of the codes that hold float32 ``values``; the code of zero for a NaN where there is none."""
    codes = _holder(fmt).encode(values).long() & ((1 << fmt.bits) - 1)
    back = fmt.decode(codes.int())
    codes = codes.masked_fill(back.isnan(), NAN)
    return codes.masked_fill((back != values) & ~values.isnan(), UNHELD)


@lru_cache(maxsize=64)
def _holder(fmt: Format) -> Format:
    """Return ``fmt`` as it encodes infinities and the most negative integer, where it has codes for them."""
    if isinstance(fmt, Minifloat):
        return replace(fmt, saturate=False)
    return replace(fmt, symmetric=False) if isinstance(fmt, Integer) else fmt


def has_negative_zero(fmt: Format) -> bool:
    """Return whether the format tells -0 from +0."""
    return bool(torch.signbit(fmt.round(torch.tensor([-0.0]))))


def hexadecimal(key: int, bits: int) -> str:
    """Return a code's key as text."""
    return {NAN: "NaN", UNHELD: "no code"}.get(key) or f"0x{key:0{-(-bits // 4)}x}"


def float_bits(value: float) -> str:
    """Return a value as text: its float32 bits, or its float64 bits where float32 cannot hold it."""
    if value != value:
        return "NaN"
    wide = torch.tensor([value], dtype=torch.float64)
    if float(wide.float()) == value:
        return f"0x{int(bits_of(wide.float())):08x}"
    return f"0x{int(wide.view(torch.int64)) & (1 << 64) - 1:016x}"


# --- single numbers ---


@dataclass(frozen=True, eq=False)
class RoundTrial:
    """An encoder's answers, number by number.

    Attributes:
        x: inputs, float32 ``[n]``.
        found: int64 codes or float64 values, ``[n]``.
        classes: class of each input.
        format: the format that was asked for.
    """

    x: Tensor
    found: Tensor
    classes: Tensor
    format: Format
    names: tuple[str, ...] = CLASSES

    def agree(self, way: Rounder) -> Tensor:
        """See `Trial.agree`."""
        found, expected = self._keys(way)
        return found == expected

    def sample(self, agree: Tensor) -> Self:
        """See `Trial.sample`."""
        kept = torch.cat([spread(mask, _SAMPLE) for mask in by_class(self.classes, agree)])
        return replace(self, x=self.x[kept], found=self.found[kept], classes=self.classes[kept])

    def difference(self, index: int, way: Rounder) -> Difference:
        """See `Trial.difference`."""
        one = replace(self, x=self.x[index : index + 1], found=self.found[index : index + 1])
        expected = way.values(one.x)
        name = self.names[int(self.classes[index])]
        if self.found.is_floating_point():
            texts = float_bits(float(expected)), float_bits(float(one.found))
        else:
            nan_code = NAN if way.format.value.decode(one.found.int()).isnan() else int(one.found)
            texts = (
                hexadecimal(int(keys_of_values(expected, way.format.value)), self.format.bits),
                hexadecimal(nan_code, self.format.bits),
            )
        return Difference(f"0x{int(bits_of(one.x)):08x}", float(one.x), *texts, name)

    def _keys(self, way: Rounder) -> tuple[Tensor, Tensor]:
        values = way.values(self.x)
        if self.found.is_floating_point():
            signed = has_negative_zero(self.format)
            return value_keys(self.found, signed), value_keys(values, signed)
        return code_keys(self.found, way.format.value), keys_of_values(values, way.format.value)


@dataclass(frozen=True, eq=False)
class DecodeTrial:
    """A decoder's answers: ``found``, float64 ``[n]``, for the int64 ``codes`` of ``format``."""

    codes: Tensor
    found: Tensor
    format: Format
    names: tuple[str, ...] = ("code",)

    @property
    def classes(self) -> Tensor:
        """There is one class: codes."""
        return torch.zeros_like(self.codes)

    def agree(self, way: Rounder) -> Tensor:
        """See `Trial.agree`."""
        signed = has_negative_zero(self.format)
        return value_keys(self.found, signed) == value_keys(self._values(way), signed)

    def sample(self, agree: Tensor) -> Self:
        """There are few codes: all of them."""
        return self

    def difference(self, index: int, way: Rounder) -> Difference:
        """See `Trial.difference`; the input is the code."""
        code, expected = int(self.codes[index]), float(self._values(way)[index])
        texts = float_bits(expected), float_bits(float(self.found[index]))
        value = float(self.format.decode(self.codes[index : index + 1].int()))
        return Difference(hexadecimal(code, self.format.bits), value, *texts, "code")

    def _values(self, way: Rounder) -> Tensor:
        values = way.format.value.decode(self.codes.int())
        return way.fixed(values, values)

"""A foreign encoder: calling it on torch or NumPy arrays, and reading what it returns.

What comes back is one of four kinds: ``codes`` (integers, or a float type of one byte, whose bits are the codes; packed
below 8 bits where the last axis says so), ``values`` (numbers on the grid), and for block formats ``codes+scales`` (a
tuple, with a third part where there is a scale of the whole tensor) or ``dequantized`` (scales multiplied back).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.formats import Format, pack, unpack
from narrowcast.formats.packing import packed_size
from narrowcast.names import dtype_name

KINDS = ("codes", "values")
BLOCK_KINDS = ("codes+scales", "dequantized")
ARRAYS = ("torch", "numpy")
_LONGEST = 160  # characters of someone else's error message


@dataclass(frozen=True)
class Foreign:
    """A callable under test.

    Attributes:
        function: takes one array of values (a decoder: codes, then any scales) and returns arrays.
        name: what messages call it.
        arrays: ``"torch"`` or ``"numpy"``: what it is given.
    """

    function: Callable[..., Any]
    name: str
    arrays: str

    def __call__(self, *given: Any) -> tuple[Any, ...]:
        """Return its outputs as they are, always a tuple; InputError where it fails."""
        try:
            with np.errstate(all="ignore"):
                found = self.function(*(self._array(one) for one in given))
        except Exception as error:
            shapes = " and ".join(f"{dtype_name(a.dtype)} {list(a.shape)}" for a in given)
            text = " ".join(str(error).split())
            what = f"{type(error).__name__}: {text if len(text) <= _LONGEST else text[:_LONGEST] + '...'}"
            raise InputError(f"{self.name} failed on {self.arrays} arrays ({shapes}): {what}") from error
        return tuple(found) if isinstance(found, tuple | list) else (found,)

    def _array(self, given: Any) -> Any:
        if isinstance(given, Tensor):
            return given.clone() if self.arrays == "torch" else given.numpy().copy()
        return given.copy()


def foreign(function: Callable[..., Any], name: str, probe: tuple[Tensor, ...], arrays: str | None = None) -> Foreign:
    """Return ``function`` as a `Foreign`; without ``arrays``, torch tensors are tried first, on ``probe``."""
    if not callable(function):
        raise InputError(f"{name} is of type {type(function).__name__}, expected a function of an array")
    if arrays is not None and arrays not in ARRAYS:
        raise InputError(f"unknown arrays {arrays!r}; known: {', '.join(ARRAYS)}")
    failures = []
    for kind in (arrays,) if arrays else ARRAYS:
        if kind == "numpy" and probe[0].dtype == torch.bfloat16:
            failures.append("NumPy has no bfloat16")
            continue
        found = Foreign(function, name, kind)
        try:
            for part in found(*probe):
                numbers(part, name)
            return found
        except InputError as error:
            failures.append(str(error))
    raise InputError("; ".join(failures))


@dataclass(frozen=True)
class Carrier:
    """How codes come: in which type, and packed or not; a decoder is given them as its encoder makes them."""

    like: Any
    packed: bool = False

    def __call__(self, codes: Tensor, bits: int) -> Any:
        """Return int64 ``codes`` (or float values, where floats came) in an array of the same type."""
        if self.packed:
            codes = pack(codes, bits)
        if isinstance(self.like, Tensor):
            narrow = self.like.is_floating_point() and self.like.element_size() == 1
            return codes.to(torch.uint8).view(self.like.dtype) if narrow else codes.to(self.like.dtype)
        kind = np.asarray(self.like).dtype
        narrow = kind.itemsize == 1 and "int" not in kind.name
        array = codes.numpy()
        return array.astype(np.uint8).view(kind) if narrow else array.astype(kind)


def numbers(part: Any, name: str) -> Tensor:
    """Return one output as an int64 tensor of codes or a float64 tensor of values, on the CPU."""
    if isinstance(part, Tensor):
        return _torch_numbers(part.detach().cpu(), name)
    array = np.asarray(part)
    if array.dtype.kind in "iu":
        return torch.from_numpy(array.astype(np.int64))
    if array.dtype.kind == "f" and array.dtype.itemsize > 1:
        return torch.from_numpy(array.astype(np.float64))
    label, kind = array.dtype.name, array.dtype.kind
    if kind in "bcOUSmM" or (array.dtype.itemsize > 1 and not label.startswith("bfloat")):
        raise InputError(f"{name} returned {label} ({type(part).__name__}), expected integer codes or float values")
    if label.startswith(("int", "uint", "bfloat")):  # ml_dtypes' own
        wide = np.float64 if label.startswith("bfloat") else np.int64
        return torch.from_numpy(array.astype(wide))
    return torch.from_numpy(array.view(np.uint8).astype(np.int64))


def _torch_numbers(part: Tensor, name: str) -> Tensor:
    if part.dtype in (torch.bool, torch.complex64, torch.complex128):
        raise InputError(f"{name} returned {part.dtype}, expected integer codes or float values")
    if part.element_size() == 1:
        return part.view(torch.uint8 if part.is_floating_point() else part.dtype).long()
    return part.double() if part.is_floating_point() else part.long()


def codes_of(raw: Tensor, fmt: Format, shape: tuple[int, ...], name: str) -> Tensor:
    """Return int64 codes of ``shape`` from what was returned: two's complement made unsigned, packed ones unpacked."""
    packed = (*shape[:-1], packed_size(shape[-1], fmt.bits))
    found = tuple(raw.shape)
    if raw.is_floating_point():
        raise InputError(f"{name} returned float values where codes of {fmt} were expected")
    if found == packed and packed != shape:
        return unpack(raw & 0xFF, fmt.bits, shape[-1]).long()
    if found != shape:
        expected = f"{list(shape)}, or packed {list(packed)}" if packed != shape else f"{list(shape)}"
        raise InputError(f"{name} returned codes of shape {list(found)}, expected {expected}")
    top = 1 << fmt.bits
    low, high = (int(raw.min()), int(raw.max())) if raw.numel() else (0, 0)
    if high >= top or low < -(top >> 1):
        shifted = fmt.bits < 8 and low >= 0 and high < 256 and bool((raw % (256 >> fmt.bits) == 0).all())
        remedy = "; codes belong in the low bits of a byte: shift them down" if shifted else ""
        raise InputError(
            f"{name} returned the code {high if high >= top else low}, expected 0 to {top - 1} "
            f"for the {fmt.bits} bits of {fmt}{remedy}"
        )
    return raw & (top - 1)


def values_of(raw: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Return float64 values of ``shape``."""
    if tuple(raw.shape) != shape:
        raise InputError(f"{name} returned values of shape {list(raw.shape)}, expected {list(shape)}")
    return raw.double()


def orders(found: Tensor, tile: int | None = None) -> dict[str, Tensor]:
    """Return ``found`` ``[..., n]`` as it would read if it had been stored in another order, by the order's name.

    ``tile``: elements that share a scale along the last axis, for orders within a tile.
    """
    row = found.shape[-1]
    orders = {
        "swapped nibbles": found.unflatten(-1, (-1, 2)).flip(-1).flatten(-2),
        "swapped halves of a row": found.roll(row // 2, -1),
    }
    for run, where in ((row, "row"), (tile, "tile")):
        if run and run % 2 == 0 and (where == "row" or run != row):
            low, high = found.unflatten(-1, (-1, run // 2, 2)).unbind(-1)
            for nibbles, halves in (("low", [low, high]), ("high", [high, low])):
                name = f"swapped halves: the first half of a {where} in the {nibbles} nibbles"
                orders[name] = torch.cat(halves, -1).flatten(-2)
    return orders


def arrangements(codes: Tensor, bits: int, tile: int | None = None) -> dict[str, Tensor]:
    """Return int64 ``codes`` as they would read if stored in another order, of codes or of the bits within one."""
    found = orders(codes, tile)
    if bits == 8:
        found["swapped nibbles within a code"] = (codes >> 4) | (codes << 4 & 0xF0)
    if bits == 16:
        found["swapped bytes"] = (codes >> 8) | (codes << 8 & 0xFF00)
    return found

"""At which powers of two the values of one format are values of another: found by trying all of them."""

from functools import lru_cache

import torch
from torch import Tensor

from narrowcast.formats import Format, format

REACH = 40  # binades either way: at the ends nothing but zero fits e4m3fn or e5m2
ANYWHERE = 1000  # a shift beyond all exponents: of what fits at every shift, or at none


@lru_cache(maxsize=256)
def limits(fmt: Format, carrier: str) -> Tensor:
    """Return the smallest and largest shift ``s`` at which each code's value times 2**s is exact, int32 ``[2, codes]``.

    Shifts between them are exact too. Zero and NaN are so everywhere; what never is has its smallest above its largest.
    """
    fits = _fits(fmt, carrier)
    at = torch.arange(-REACH, REACH + 1)[:, None]
    smallest = torch.where(fits, at, ANYWHERE).amin(0)
    largest = torch.where(fits, at, -ANYWHERE).amax(0)
    everywhere = fits.all(0)
    found = torch.stack([smallest.where(~everywhere, -ANYWHERE), largest.where(~everywhere, ANYWHERE)])
    return found.int()


@lru_cache(maxsize=256)
def room(fmt: Format, carrier: str) -> int:
    """Return by how many binades scales may differ so that every value of ``fmt`` stays exact; -1: there is no way."""
    if fmt.bits > 8:
        return -1
    smallest, largest = limits(fmt, carrier)
    return max(int(largest.amin() - smallest.amax()), -1)


def shifted(fmt: Format, carrier: str) -> Tensor:
    """Return the carrier's code of every value at shifts -REACH to REACH, uint8 ``[2 REACH + 1, codes]``.

    NaN's where that is not exact.
    """
    exact = torch.where(_fits(fmt, carrier), _values(fmt), float("nan"))
    return format(carrier).encode(exact).to(torch.uint8)


def _values(fmt: Format) -> Tensor:
    """Return each code's value times 2**s, float32 ``[2 REACH + 1, codes]``: exact, far within float32's range."""
    shift = torch.arange(-REACH, REACH + 1, dtype=torch.float64)
    return (fmt.decode(fmt.codes()).double() * torch.exp2(shift)[:, None]).float()


def _fits(fmt: Format, carrier: str) -> Tensor:
    values = _values(fmt)
    return (format(carrier).round(values) == values) & values.isfinite() | values.isnan()

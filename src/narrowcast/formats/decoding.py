"""Codes of minifloats become values: by torch's own conversion where it knows the format, else the ends by hand.

To decode is exact, so there is but one answer. One conversion is what a compiler joins to the arithmetic that follows;
the twenty operations on fields it writes out in float32 first (four bytes for each byte of codes, measured on an H100).
"""

import torch
from torch import Tensor

from narrowcast.formats.lookup import constant
from narrowcast.formats.specials import Specials

_BYTES = {1: torch.uint8, 2: torch.int16}  # what holds a code of so many bytes
#: by widths of exponent and mantissa, bias and specials: torch's dtype with the same codes, subnormals included
_DTYPES = {
    (4, 3, 7, Specials.FN): torch.float8_e4m3fn,
    (5, 2, 15, Specials.IEEE): torch.float8_e5m2,
    (8, 7, 127, Specials.IEEE): torch.bfloat16,
    (5, 10, 15, Specials.IEEE): torch.float16,
}


def converted(codes: Tensor, exponent: int, mantissa: int, bias: int, specials: Specials) -> Tensor | None:
    """Return the float32 values of codes of a signed format with subnormals; None where torch has no such type here.

    The sign and the bits of a NaN are the processor's own affair.
    """
    dtype = _DTYPES.get((exponent, mantissa, bias, specials))
    if dtype is None or (torch.compiler.is_compiling() and not _compiles(dtype, codes.device.type)[0]):
        return None
    return codes.to(_BYTES[dtype.itemsize]).view(dtype).float()


@constant
def _compiles(dtype: torch.dtype, device: str) -> tuple[bool]:
    """Return whether compiled code converts from ``dtype`` on this kind of device: from e4m3fn only where units do."""
    return (dtype != torch.float8_e4m3fn or device != "cuda" or torch.cuda.get_device_capability() >= (8, 9),)


def with_ends(
    value: Tensor, codes: Tensor, magnitude: Tensor, specials: Specials, max_code: int, nan_code: int | None
) -> Tensor:
    """Return ``value`` with infinities and NaNs where ``codes`` (``magnitude``: without sign) are no finite numbers."""
    nan = torch.full_like(value, float("nan"))
    match specials:
        case Specials.IEEE:
            value = value.masked_fill(magnitude == max_code + 1, float("inf"))
            return torch.where(magnitude > max_code + 1, nan, value)
        case Specials.FN:
            return torch.where(magnitude > max_code, nan, value)
        case Specials.P3109:
            value = value.masked_fill(magnitude == max_code + 1, float("inf"))
            return torch.where(codes == (nan_code or 0), nan, value)
        case Specials.FNUZ:
            return torch.where(codes == (nan_code or 0), nan, value)
        case _:
            return value

"""Floor 1: how products are formed and summed. Accumulators and product operators as values."""

import re

from narrowcast.accumulate.accumulator import FP32, Accumulator, Codes, Library, Operand, codes_of, tensor_of
from narrowcast.accumulate.aligned import HOPPER_FP8, HOPPER_FP16, PRESETS, Aligned
from narrowcast.accumulate.exact import EXACT_SUM, Exact
from narrowcast.accumulate.integer import Fixed, add_shared, narrow_shared
from narrowcast.accumulate.product import TIMES, LMul, Product, product
from narrowcast.accumulate.sequential import Chunked, Every, Order, Sequential, Split, Tree, order
from narrowcast.errors import InputError
from narrowcast.formats import NEAREST_EVEN, format, rounding


def accumulator(spelling: "str | Accumulator") -> Accumulator:
    """Return the accumulator that ``spelling`` names: ``INNER`` or ``INNER/ORDER/FORMAT``.

    - INNER: ``fp32`` (the library's matmul), ``bf16-sequential`` (any format; ``+toward-zero``, ``+unfused``),
      ``hopper-fp8``, ``hopper-fp16``, ``aligned-GROUP-FRACTION-REGISTER`` (``+normalised``, ``+late``),
      ``int32-wrap`` (``saturate``, ``raise``; any width), ``exact``.
    - ORDER: ``every128``, ``split4``, ``tree32``: how K is cut, and how the chunks' sums are added in FORMAT.

    >>> str(accumulator("hopper-fp8/every128/fp32"))
    'hopper-fp8/every128/float32'
    """
    if isinstance(spelling, Accumulator):
        return spelling
    inner, *rest = spelling.split("/")
    try:
        if not rest:
            return _leaf(inner)
        if len(rest) != 2:
            raise InputError(f"found {len(rest) + 1} parts, expected INNER or INNER/ORDER/FORMAT")
        return Chunked(_leaf(inner), order(rest[0]), _sequential(rest[1]))
    except InputError as error:
        raise InputError(f"malformed accumulator {spelling!r}: {error}") from None


def _leaf(text: str) -> Accumulator:
    if text in ("fp32", "float32"):
        return FP32
    if text == "exact":
        return EXACT_SUM
    name, *options = text.split("+")
    if text in PRESETS:
        return PRESETS[text]
    if name.endswith("-sequential"):
        return _sequential("+".join([name.removesuffix("-sequential"), *options]))
    if found := re.fullmatch(r"int(\d+)-([a-z]+)", text):
        return Fixed(int(found[1]), found[2])
    if found := re.fullmatch(r"aligned-(\d+)-(\d+)-(\d+)", name):
        _known(options, "normalised", "late")
        group, fraction, register = map(int, found.groups())
        return Aligned(group, fraction, register, "normalised" in options, "late" not in options)
    raise InputError(
        f"{text!r} is none of fp32, exact, FORMAT-sequential, {', '.join(PRESETS)}, aligned-G-F-R, int32-wrap; "
        "a running sum in a format is spelled e.g. bf16-sequential"
    )


def _sequential(text: str) -> Sequential:
    name, *options = text.split("+")
    modes = [option for option in options if option != "unfused"]
    if len(modes) > 1:
        raise InputError(f"{text!r} names two roundings")
    return Sequential(format(name), rounding(modes[0]) if modes else NEAREST_EVEN, "unfused" not in options)


def _known(options: list[str], *names: str) -> None:
    for option in options:
        if option not in names:
            raise InputError(f"unknown option {option!r}, expected {' or '.join(names)}")


__all__ = [
    "EXACT_SUM", "FP32", "HOPPER_FP8", "HOPPER_FP16", "PRESETS", "TIMES", "Accumulator", "Aligned", "Chunked",
    "Codes", "Every", "Exact", "Fixed", "LMul", "Library", "Operand", "Order", "Product", "Sequential", "Split", "Tree",
    "accumulator", "add_shared", "codes_of", "narrow_shared", "order", "product", "tensor_of",
]  # fmt: skip

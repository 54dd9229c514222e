"""Every floating-point operation of a program rounded to a format, forward and backward, without touching the program.

    with nc.arithmetic("posit16_1") as ops:
        model(x).sum().backward()
    print(ops)

One dispatch mode sees each operation below autograd, so the gradients' operations too, and what is saved for them is
rounded already. It is the *result* of an operation that is rounded: parameters and inputs enter as they are, unless
``operands=True``. Views and moves of numbers are left alone. The table says of every operation that was met how often,
and whether it was rounded or why not.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from narrowcast.accumulate import Accumulator
from narrowcast.accumulate import accumulator as accumulator_of
from narrowcast.arithmetic.carriers import Twins, digits, fits, is_float32
from narrowcast.arithmetic.operations import (
    Exceptions,
    base_name,
    is_composite,
    named_arguments,
    steps,
    tensors,
    untouched,
    written,
)
from narrowcast.arithmetic.products import LIBRARY_SUMS, SUMS
from narrowcast.errors import InputError, nearest
from narrowcast.formats import Format, Rounding, Stream
from narrowcast.formats import format as format_of
from narrowcast.formats import rounding as rounding_of

CARRIERS = ("auto", "float32", "float64")


@dataclass(frozen=True)
class Settings:
    """What `arithmetic` is told; see there."""

    format: Format
    rounding: Rounding
    seed: int
    exceptions: Exceptions
    accumulator: Accumulator | None
    carrier: str
    operands: bool
    inside: bool

    def __post_init__(self) -> None:
        if self.carrier not in CARRIERS:
            raise InputError(f"unknown carrier {self.carrier!r}{nearest(self.carrier, CARRIERS)}")
        zero, below = self.format.round(torch.tensor([0.0, -1.0])).tolist()
        if zero != 0 or not below < 0:
            raise InputError(
                f"format {self.format} has no zero or no negative numbers: no arithmetic can be done in it"
            )

    def widens(self, fmt: Format, call: "Call") -> bool:
        """Whether a call's float32 arguments are computed with in float64."""
        needed = self.carrier == "float64" or (self.carrier == "auto" and 2 * digits(fmt) + 2 > 24)
        draws = torch.Tag.nondeterministic_seeded in call.op.tags  # must draw what it draws without us
        return needed and not draws and call.named.get("dtype") is None and is_float32(call.floats())


@dataclass
class Call:
    """One operation and its arguments; ``named`` by the names in its schema."""

    op: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.named = named_arguments(self.op, self.args, self.kwargs)

    @property
    def name(self) -> str:
        """Base name in aten."""
        return base_name(self.op)

    def floats(self) -> Iterator[Tensor]:
        """Yield the floating-point tensors among the arguments."""
        return (t for t in tensors(list(self.named.values())) if t.is_floating_point())


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        op: base name of the operation in aten.
        calls: how often it was met.
        became: the format its results were rounded to, or ``as it was``.
        why: why it was not rounded, or what else there is to know.
    """

    op: str
    calls: int
    became: str
    why: str


class Arithmetic(TorchDispatchMode):
    """The mode that `arithmetic` returns, and the table of what it did."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.settings = settings
        self._drawn = 0
        self._met: Counter[tuple[str, str, str]] = Counter()

    def rows(self) -> list[Row]:
        """Return the table, most frequent first; exceptions that no operation met come last, with 0 calls."""
        met = [Row(op, calls, became, why) for (op, became, why), calls in self._met.most_common()]
        return met + [Row(p, 0, "-", "an exception that no operation met") for p in self.settings.exceptions.unmet()]

    def to_json(self) -> list[dict[str, object]]:
        """Return the rows as plain dictionaries."""
        return [asdict(row) for row in self.rows()]

    def __str__(self) -> str:
        lines = [("op", "calls", "became", "why")] + [(r.op, str(r.calls), r.became, r.why) for r in self.rows()]
        widths = [max(len(line[i]) for line in lines) for i in range(4)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation and round what it computed."""
        call = Call(func, args, kwargs or {})
        if is_composite(func.name()):
            with self:
                return func.decompose(*call.args, **call.kwargs)
        why, fmt = untouched(func, call.named), self.settings.format
        if why is None and (pattern := self.settings.exceptions.pattern_for(call.name)) is not None:
            other = self.settings.exceptions.formats[pattern]
            why, fmt = (f"exception {pattern!r}", fmt) if other is None else (None, other)
        elif why is None and self.settings.inside and (apart := steps().get(func)) is not None:
            with self:
                return apart(*call.args, **call.kwargs)
        if why is not None:
            self._met[call.name, "as it was", why] += 1
            return func(*call.args, **call.kwargs)
        return self._computed(call, fmt)

    def _computed(self, call: Call, fmt: Format) -> Any:
        """Run a call that computes and round its results to ``fmt``."""
        writes = written(call.op, call.named)
        if self.settings.operands:
            call = self._with_rounded_operands(call, {id(t) for t in writes}, fmt)
        if not writes and (total := self._summed(call, fmt)) is not None:
            return total
        twins = Twins(self.settings.widens(fmt, call))
        result = call.op(*twins.arguments(call.args), **twins.arguments(call.kwargs))
        result = twins.settle(result, writes, lambda x: self._rounded(x, fmt))
        self._note(call.name, fmt, [*tensors(result), *writes])
        return result

    def _with_rounded_operands(self, call: Call, writes: set[int], fmt: Format) -> Call:
        def operand(x: Tensor) -> Tensor:
            return self._rounded(x, fmt) if x.is_floating_point() and id(x) not in writes else x

        return Call(call.op, tree_map_only(Tensor, operand, call.args), tree_map_only(Tensor, operand, call.kwargs))

    def _summed(self, call: Call, fmt: Format) -> Tensor | None:
        """Run a call that sums products through the accumulator; None where there is none, or none for this call."""
        accumulator, dtypes = self.settings.accumulator, [t.dtype for t in call.floats()]
        if accumulator is None or call.name not in SUMS or len({*dtypes}) != 1:
            return None
        total = SUMS[call.name](call.named, accumulator, lambda x: self._rounded(x, fmt))
        if total is None:
            return None
        self._met[call.name, str(fmt), f"summed by {accumulator}"] += 1
        return self._rounded(total, fmt).to(dtypes[0])

    def _note(self, name: str, fmt: Format, results: list[Tensor]) -> None:
        if any(t.is_floating_point() for t in results):
            summing = self.settings.accumulator is not None and (name in SUMS or name in LIBRARY_SUMS)
            self._met[name, str(fmt), "inner sums by the library" if summing else ""] += 1
        else:
            why = "complex numbers" if any(t.is_complex() for t in results) else "no floating-point result"
            self._met[name, "as it was", why] += 1

    def _rounded(self, x: Tensor, fmt: Format) -> Tensor:
        """Return ``x`` in ``fmt``, with its own dtype."""
        if not fits(fmt, x.dtype):
            raise InputError(
                f"{x.dtype} cannot hold the numbers of {fmt}: run the program in float32 (no autocast, no .half()), or "
                "choose a format that it holds"
            )
        mode, draws = self.settings.rounding, None
        if mode.random:
            draws = Stream(self.settings.seed, self._drawn).bits(x.shape, device=x.device)
            self._drawn += 1
        return fmt.round(x, mode, draws).to(x.dtype)


def arithmetic(
    format: str | Format,
    *,
    rounding: str | Rounding = "nearest-even",
    seed: int = 0,
    exceptions: Mapping[str, str | Format | None] | None = None,
    accumulator: str | Accumulator | None = None,
    carrier: str = "auto",
    operands: bool = False,
    inside: bool = False,
) -> Arithmetic:
    """Round the result of every floating-point operation inside a ``with`` block to ``format``.

    Autograd's operations are rounded where ``backward`` is called inside the block, an optimizer's where it steps
    there. In-place and ``out=`` operations are rounded where they write, all of the tensor they are given. Constants
    and random numbers are rounded too. Compiled functions run uncompiled inside the block (torch's own rule for
    dispatch modes).

    Infinities fare as the format has it: a mask of -inf that is added becomes the lowest number of a saturating format
    and NaN (NaR) of a posit; mask with a large number there. Whatever narrowcast itself computes inside the block
    (`round`, layers that `convert` made, metrics) is a program like any other and is rounded too: use plain layers.

    Args:
        format: e.g. ``posit16_1``, ``e5m2``; it needs a zero and negative numbers.
        rounding: mode; stochastic modes draw from ``seed`` and the number of roundings so far.
        seed: key of the random bits.
        exceptions: operations to round to another format, or (None) not at all, e.g.
            ``{"softmax": "bf16", "*norm*": None}``.
        accumulator: what sums inside mm, bmm, addmm, dot, sum, mean and plain two-dimensional convolutions; None for
            the library's float32 sums. Its result is rounded, then a bias is added and rounded. Other operations that
            sum inside (convolutions' gradients, norms, softmax) are marked in the table.
        carrier: what operations on float32 tensors compute in: ``float32``, ``float64``, or ``auto`` (float64 where
            float32 would round twice: formats of more than 11 significant bits). Tensors keep their dtype.
        operands: also round what enters an operation (parameters, inputs), each time.
        inside: also round the steps inside fused operations (softmax, layer norm, gelu, their gradients), as PyTorch's
            own decompositions write them.

    Returns a mode: ``with arithmetic(...) as ops``, then ``ops.rows()``, ``ops.to_json()`` and ``print(ops)``.

    Raises InputError for a bad name or an exception that no operation can meet; inside the block, where a tensor's
    dtype (bfloat16 under autocast) cannot hold the format. Source: sheet 93 (pychop's rounding of every operation).

    >>> with arithmetic("e4m3fn") as ops:
    ...     y = torch.tensor([1.0, 2.0, 3.0]) / 3
    >>> y
    tensor([0.3438, 0.6875, 1.0000])
    """
    return Arithmetic(
        Settings(
            format_of(format),
            rounding_of(rounding),
            seed,
            Exceptions(exceptions or {}),
            None if accumulator is None else accumulator_of(accumulator),
            carrier,
            operands,
            inside,
        )
    )


__all__ = ["CARRIERS", "Arithmetic", "Row", "arithmetic"]

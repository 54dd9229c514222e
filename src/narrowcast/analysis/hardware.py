"""What a multiply-accumulate unit costs in silicon, by format: gates, area and energy from a model, not a synthesis.

The unit multiplies two codes, places the product in a fixed-point accumulator wide enough for *every* product of the
two formats (a Kulisch accumulator: sums are exact), and adds. Its parts, in two-input NAND equivalents:

- multiplier: an array of ANDs and full adders over the two significands;
- exponent adder, and the shifter that places the product: only where a format has more than one binade of equal steps;
- accumulator: one full adder and one flip-flop per bit, ``span + ceil(log2 depth)`` bits;
- decoder: for formats whose fields are not in fixed places (posits, tables), a table of the decoded fields.

``span`` is the number of bit positions that an exact product can occupy (sheet 20: 14 for int8, 36 for e4m3fn). Area
and energy multiply the gates by what an 8-bit integer multiplier takes in a published 45 nm process. It is a proxy for
comparing formats: `trust` holds it against published multipliers (0.9 times for int32; 1.9 to 2.8 times for floats,
which also normalise and round, what an exact accumulator does without).
"""

import math
from dataclasses import dataclass

from narrowcast.analysis.roofline import Constant
from narrowcast.errors import InputError
from narrowcast.formats import Format

_HOROWITZ = "Horowitz 2014, Computing's Energy Problem (ISSCC), 45 nm, 0.9 V"
_CELLS = "NAND2 equivalents of a standard-cell full adder, multiplexer and flip-flop, as commonly tabulated"
FULL_ADDER = Constant("full adder", 9.0, "gates", _CELLS)
AND = Constant("and", 1.5, "gates", _CELLS)
MUX = Constant("multiplexer", 3.0, "gates", _CELLS)
FLIP_FLOP = Constant("flip-flop", 6.0, "gates", _CELLS)
TABLE_BIT = Constant("table bit", 0.25, "gates", "a ROM bit counted as a quarter of a gate; our assumption")
INT8_MULTIPLY_ENERGY = Constant("int8 multiply", 0.2, "pJ", _HOROWITZ)
INT8_MULTIPLY_AREA = Constant("int8 multiply", 282.0, "um^2", _HOROWITZ)
CONSTANTS = (FULL_ADDER, AND, MUX, FLIP_FLOP, TABLE_BIT, INT8_MULTIPLY_ENERGY, INT8_MULTIPLY_AREA)

#: published energy (pJ) of multiplications, to hold the model against: significand bits of both operands
CHECKS = (
    Constant("int32 multiply", 3.1, "pJ", _HOROWITZ),
    Constant("float16 multiply", 1.1, "pJ", _HOROWITZ),
    Constant("float32 multiply", 3.7, "pJ", _HOROWITZ),
)
MAC_BITS = 16  # widest format with a cost: nobody would build an exact accumulator for more
_FIXED_FIELDS = ("minifloat", "integer")  # families whose fields lie in fixed places of the code
_PUBLISHED_BITS = {"int32 multiply": 32, "float16 multiply": 11, "float32 multiply": 24}


@dataclass(frozen=True)
class Mac:
    """The parts of a multiply-accumulate unit, in gates.

    Attributes:
        multiplier, exponent, shifter, accumulator, decoder: gates of each part.
        span: bit positions that an exact product can occupy.
        accumulator_bits: width of the accumulator.
        lanes: such units that the operands of one 16-bit lane feed per cycle (sheet 81), 16 / the wider code.
    """

    multiplier: float
    exponent: float
    shifter: float
    accumulator: float
    decoder: float
    span: int
    accumulator_bits: int
    lanes: float

    @property
    def gates(self) -> float:
        """All parts together."""
        return self.multiplier + self.exponent + self.shifter + self.accumulator + self.decoder

    @property
    def energy(self) -> float:
        """Energy of one operation in pJ, at 45 nm."""
        return self.gates * INT8_MULTIPLY_ENERGY.value / multiplier_gates(8, 8)

    @property
    def area(self) -> float:
        """Area in square micrometres, at 45 nm."""
        return self.gates * INT8_MULTIPLY_AREA.value / multiplier_gates(8, 8)


def multiplier_gates(a: int, b: int) -> float:
    """Return the gates of an array multiplier of ``a`` by ``b`` bits: a*b ANDs, (a - 1)*b full adders."""
    return a * b * AND.value + max(min(a, b) - 1, 0) * max(a, b) * FULL_ADDER.value


def significand(fmt: Format) -> int:
    """Return the bits of the widest significand of ``fmt``: all magnitude bits where its grid is uniform."""
    return _reach(fmt) if _uniform(fmt) else fmt.precision + 1 if _fixed(fmt) else _widest(fmt)


def product_span(a: Format, b: Format) -> int:
    """Return the bit positions that an exact product of values of ``a`` and ``b`` can occupy.

    >>> from narrowcast.formats import format
    >>> product_span(format("int8"), format("int8")), product_span(format("e4m3fn"), format("e4m3fn"))
    (14, 36)
    """
    return math.floor(math.log2(a.max / a.smallest) + math.log2(b.max / b.smallest)) + 1


def mac(a: Format, b: Format, depth: int = 1024) -> Mac:
    """Return the cost of a unit that sums ``depth`` products of values of ``a`` and ``b`` exactly.

    Raises InputError for formats of more than 16 bits, whose exact accumulator nobody would build.
    """
    for fmt in (a, b):
        if fmt.bits > MAC_BITS:
            raise InputError(f"format {fmt} has {fmt.bits} bits; the cost model is for formats of at most {MAC_BITS}")
    if depth < 1:
        raise InputError(f"depth {depth}: expected at least one product")
    span, widths = product_span(a, b), (significand(a), significand(b))
    floating = not (_uniform(a) and _uniform(b))
    bits = span + math.ceil(math.log2(depth))
    exponent = (max(_exponent_bits(a), _exponent_bits(b)) + 1) * FULL_ADDER.value if floating else 0.0
    shifter = span * math.ceil(math.log2(span)) * MUX.value if floating else 0.0
    accumulator = bits * (FULL_ADDER.value + FLIP_FLOP.value)
    decoder = _decoder(a) + _decoder(b)
    lanes = 16 / max(a.bits, b.bits)
    return Mac(multiplier_gates(*widths), exponent, shifter, accumulator, decoder, span, bits, lanes)


def trust() -> dict[str, float]:
    """Return published over modelled energy for each of `CHECKS`: 1 where the model is right."""
    per_gate = INT8_MULTIPLY_ENERGY.value / multiplier_gates(8, 8)
    return {c.name: c.value / (multiplier_gates(*(_PUBLISHED_BITS[c.name],) * 2) * per_gate) for c in CHECKS}


def _reach(fmt: Format) -> int:
    return math.floor(math.log2(fmt.max / fmt.smallest)) + 1


def _fixed(fmt: Format) -> bool:
    return fmt.layout.family in _FIXED_FIELDS


def _uniform(fmt: Format) -> bool:
    """Whether the grid has one step throughout (integers, and floats with one exponent bit)."""
    return _fixed(fmt) and _reach(fmt) <= fmt.precision + 1


def _widest(fmt: Format) -> int:
    """Return the most significand bits that any value of a tabulated format needs."""
    widest = 1
    for value in fmt.values().abs().tolist():
        if value:
            mantissa = int(math.ldexp(math.frexp(value)[0], 53))
            widest = max(widest, 53 - ((mantissa & -mantissa).bit_length() - 1))
    return min(widest, 24)


def _exponent_bits(fmt: Format) -> int:
    binades = math.floor(math.log2(fmt.max)) - math.floor(math.log2(fmt.smallest)) + 1
    return max(1, math.ceil(math.log2(binades)))


def _decoder(fmt: Format) -> float:
    """Return the gates of a table from codes to sign, exponent and significand; 0 where the fields lie open."""
    if _fixed(fmt):
        return 0.0
    return (1 << fmt.bits) * (1 + _exponent_bits(fmt) + significand(fmt)) * TABLE_BIT.value

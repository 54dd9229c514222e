"""Names that spell out their fields: ``e3m4``, ``ue5m3_ieee``, ``int5``, ``q3.12``. One row a family.

The catalogue holds the formats that people call by name; a family makes any other member of a type from its name. Each
format has one canonical name, which its family returns whatever spelling was asked for (``e4m3b7fn`` is ``e4m3fn``).

Taking bits off a float32 is rounding to a member. Masking its low mantissa bits is ``e8mM`` under ``toward-zero``;
fewer exponent bits, clipped above and flushed below, are ``eEm7_ftz_sat`` (Lee et al. 2024, "To FP8 and Back Again"; Li
et al. 2018, "Exploration of Numerical Precision"). Another rounding shows how much of the effect is truncation's bias.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from narrowcast.errors import InputError
from narrowcast.formats.codebook import Codebook, codebook, dynamic
from narrowcast.formats.format import Format
from narrowcast.formats.integer import Integer
from narrowcast.formats.lns import Logarithmic
from narrowcast.formats.minifloat import Minifloat
from narrowcast.formats.posit import Posit
from narrowcast.formats.specials import Bottom, Specials


@dataclass(frozen=True)
class Family:
    """All formats of one kind, by name.

    Attributes:
        pattern: regular expression that the whole name must match.
        make: the format of a match, under its canonical name; InputError where the fields make no sense.
        examples: members that are not in the catalogue; the contract tests run on them.
        what: how to read a name, in one line.
    """

    pattern: str
    make: Callable[[re.Match[str]], Format]
    examples: tuple[str, ...]
    what: str

    def match(self, name: str) -> re.Match[str] | None:
        """Return the match of the whole of ``name``, or None."""
        return re.fullmatch(self.pattern, name)


# --- minifloats ---

_NAN_FROM = 8  # bits from which "fn" keeps a NaN: OCP's 8-bit format does, its 6- and 4-bit formats do not
_OPEN_FROM = 9  # bits from which a format runs over into infinity instead of saturating, as in every framework
_MINIFLOAT = r"(u?)e(\d+)m(\d+)(?:b(-?\d+))?(fnuz|fn|_ieee|_fn|_none)?(_ftz)?(_sat|_open)?"


def _minifloat(match: re.Match[str]) -> Minifloat:
    unsigned, exponent, mantissa, bias, suffix, flush, overflow = match.groups()
    bits = int(exponent) + int(mantissa) + (not unsigned)
    specials = _specials(suffix, bits, signed=not unsigned)
    usual = _usual_bias(int(exponent), specials)
    saturate = bits < _OPEN_FROM if overflow is None else overflow == "_sat"
    fields = f"{unsigned}e{int(exponent)}m{int(mantissa)}"
    fields += "" if bias is None or int(bias) == usual else f"b{int(bias)}"
    name = fields + _suffix(specials, bits, signed=not unsigned) + (flush or "")
    name += "" if saturate == (bits < _OPEN_FROM) else "_sat" if saturate else "_open"
    if specials is Specials.NONE and overflow == "_open":
        raise InputError(f"format {match[0]}: without infinity and NaN it can only saturate; leave '_open' out")
    if flush and not int(mantissa):
        raise InputError(f"format {match[0]}: without mantissa bits nothing is subnormal; leave '_ftz' out")
    bottom = Bottom.ZERO if flush else Bottom.SUBNORMAL
    bias_ = usual if bias is None else int(bias)
    return Minifloat(name, int(exponent), int(mantissa), bias_, specials, bottom, not unsigned, saturate)


def _usual_bias(exponent: int, specials: Specials) -> int:
    """2**(E-1) - 1, IEEE's; one more where the code of -0 is free for a NaN (GraphCore, AMD: fnuz)."""
    return (1 << max(exponent - 1, 0)) - (specials is not Specials.FNUZ)


def _specials(suffix: str | None, bits: int, signed: bool) -> Specials:
    if suffix is None:
        return Specials.IEEE if signed else Specials.FN
    if suffix == "fn":
        return Specials.FN if bits >= _NAN_FROM or not signed else Specials.NONE
    return Specials(suffix.removeprefix("_"))


def _suffix(specials: Specials, bits: int, signed: bool) -> str:
    """Return the shortest suffix that `_specials` reads as ``specials``."""
    for suffix in (None, "fn", "fnuz"):
        if _specials(suffix, bits, signed) is specials:
            return suffix or ""
    return f"_{specials.value}"


def _p3109(match: re.Match[str]) -> Minifloat:
    """binary{K}p{P}{s|u}{e|f} of the IEEE P3109 interim report 3: the precision P counts the leading one."""
    bits, precision = int(match[1]), int(match[2])
    signed, extended, overflow = match[3] != "u", match[4] != "f", match[5]
    mantissa, exponent = precision - 1, bits - precision + (not signed)
    if mantissa < 0 or exponent < 1:
        widest = bits - signed
        raise InputError(f"format {match[0]}: expected a precision of 1 to {widest} in {bits} bits, found {precision}")
    saturate = bits < _OPEN_FROM if overflow is None else overflow == "_sat"
    name = f"binary{bits}p{precision}{'s' if signed else 'u'}{'e' if extended else 'f'}"
    name += "" if saturate == (bits < _OPEN_FROM) else overflow
    finite = Specials.FNUZ if signed else Specials.FN
    specials = Specials.P3109 if extended else finite
    return Minifloat(name, exponent, mantissa, 1 << (exponent - 1), specials, signed=signed, saturate=saturate)


# --- integers and fixed point ---


def _integer(match: re.Match[str]) -> Integer:
    unsigned, width, full = match[1], int(match[2]), match[3]
    name = f"{unsigned}int{width}{full or ''}"
    if unsigned and full:
        raise InputError(f"format {match[0]}: an unsigned integer has no code to leave out; use uint{width}")
    return Integer(name, width, signed=not unsigned, symmetric=not unsigned and not full)


def _fixed_point(match: re.Match[str]) -> Integer:
    unsigned, whole, fraction, full = match[1], int(match[2]), int(match[3]), match[4]
    name = f"{unsigned}q{whole}.{fraction}{full or ''}"
    if unsigned and full:
        raise InputError(f"format {match[0]}: an unsigned format has no code to leave out; use uq{whole}.{fraction}")
    width = whole + fraction + (not unsigned)
    return Integer(name, width, signed=not unsigned, symmetric=not unsigned and not full, fraction=fraction)


# --- tapered and tabulated ---


def _posit(match: re.Match[str]) -> Posit:
    width, es, flush = int(match[1]), int(match[2]), match[3] or ""
    return Posit(f"posit{width}_{es}{flush}", width, es, flush=bool(flush))


def _logarithmic(match: re.Match[str]) -> Logarithmic:
    width, gamma, bias = int(match[1]), int(match[2]), int(match[3] or 0)
    return Logarithmic(f"lns{width}_{gamma}" + (f"b{bias}" if bias else ""), width, gamma, bias)


def _table(match: re.Match[str]) -> Codebook:
    try:
        return codebook(float(value) for value in match[1].split(","))
    except ValueError as error:
        raise InputError(f"format {match[0]}: {error}; spell a table as numbers, e.g. table(-1,-0.3,0,0.3,1)") from None


FAMILIES = (
    Family(
        _MINIFLOAT,
        _minifloat,
        ("e5m7", "e6m5", "e3m3", "e2m2fn", "e4m3b8_none", "e3m4fnuz", "ue4m4", "ue2m3_none", "e4m3fn_ftz_open"),
        "[u]eXmY: X exponent and Y mantissa bits; u: no sign; bN: bias; fn, fnuz, _ieee, _fn, _none: which codes are "
        "inf and NaN; _ftz: no subnormals; _sat, _open: what is too large",
    ),
    Family(
        r"binary(\d+)p(\d+)([su]?)([ef]?)(_sat|_open)?",
        _p3109,
        (
            "binary8p1ue",
            "binary8p3se_open",
            "binary8p4ue",
            "binary8p3sf",
            "binary6p3uf",
            "binary16p8se",
            "binary16p11se",
        ),
        "binaryKpP[s|u][e|f]: IEEE P3109, K bits of which P are precision; s, u: signed or not; e, f: with inf or not",
    ),
    Family(r"(u?)int(\d+)(_full)?", _integer, (), "[u]intN: N bits; _full: with the most negative code"),
    Family(
        r"(u?)q(-?\d+)\.(\d+)(_full)?",
        _fixed_point,
        ("q3.4", "q-2.9", "q7.8_full", "uq0.8"),
        "[u]qM.N: a sign bit, M integer and N fraction bits; u: no sign; _full: with the most negative code",
    ),
    Family(
        r"posit(\d+)_(\d+)(_flush)?",
        _posit,
        ("posit2_0", "posit3_3", "posit5_1", "posit6_0", "posit12_2", "posit16_3", "posit8_0_flush"),
        "positN_E: N bits, at most E of them exponent; _flush: less than half the smallest value becomes zero",
    ),
    Family(
        r"lns(\d+)_(\d+)(?:b(\d+))?",
        _logarithmic,
        ("lns4_1", "lns4_2", "lns8_8b8", "lns6_4b3", "lns12_128"),
        "lnsN_G: N bits, G steps per octave; bN: the range begins at 2**-N",
    ),
    Family(r"dynamic(\d+)", lambda match: dynamic(int(match[1])), ("dynamic4",), "dynamicN: the dynamic map of N bits"),
    Family(
        r"table\(([^()/]*)\)",
        _table,
        ("table(-1,-0.3,0,0.3,1)", "table(0,0.1,0.3,nan,1)", "table(-1.5,-0.5,0.5,1.5)", "table(3,1,-2)"),
        "table(A,B,...): these values, by code; nan: a code that stands for nothing",
    ),
)

"""What is known of a format or a cast, as plain JSON values: fields, range, values, error."""

from typing import Any

from narrowcast.analysis.format_error import FormatError, cast_error, format_error, is_signed
from narrowcast.formats import Format
from narrowcast.formats import formats as all_formats
from narrowcast.quantize import PRESETS, Cast
from narrowcast.quantize import cast as cast_of

TABLE_BITS = 8  # widest format whose every value is listed
SHAPE = (1024, 1024)  # of the tensor whose bits per element are stated


def catalogue() -> list[dict[str, Any]]:
    """Return the facts of every catalogued format."""
    return [fmt.facts() for fmt in all_formats().values()]


def presets() -> list[dict[str, Any]]:
    """Return name, spelling and bits per element of every preset."""
    return [
        {"name": name, "spelling": str(cast_of(name)), "bits_per_element": cast_of(name).bits_per_element(SHAPE)}
        for name in PRESETS
    ]


def describe(name: str, seed: int = 0) -> dict[str, Any]:
    """Return everything shown of one format, preset or cast spelling; InputError with the nearest names."""
    cast = cast_of(name)
    fmt = cast.format
    plain = cast == Cast(fmt)
    found = {**fmt.facts(), "name": fmt.name if plain else name, "element": fmt.name}
    if not plain:
        found |= {"spelling": str(cast), "bits_per_element": cast.bits_per_element(SHAPE)}
    if fmt.bits <= TABLE_BITS:
        found["values"] = fmt.values().tolist()
    error = format_error(fmt) if plain else cast_error(cast, seed=seed)
    return {**found, "error": _error(error, fmt)}


def _error(error: FormatError, fmt: Format) -> dict[str, Any]:
    return {
        "distribution": "N(0,1)" if is_signed(fmt) else "|N(0,1)|",
        "scale": error.scale,
        "mse": error.mse,
        "sqnr_db": error.sqnr,
    }

"""What is known of a format or a cast, as plain JSON values: fields, range, values, error."""

import math
from dataclasses import asdict
from typing import Any

from narrowcast.analysis.distributions import NORMAL, USUAL, distribution
from narrowcast.analysis.format_error import TILES, FormatError, at_tile, cast_error, format_error, is_signed
from narrowcast.analysis.grid import reach
from narrowcast.analysis.hardware import MAC_BITS, mac
from narrowcast.formats import Format
from narrowcast.formats import families as all_families
from narrowcast.formats import formats as all_formats
from narrowcast.quantize import PRESETS, Cast
from narrowcast.quantize import cast as cast_of

TABLE_BITS = 8  # widest format whose every value is listed
SHAPE = (1024, 1024)  # of the tensor whose bits per element are stated


def catalogue() -> list[dict[str, Any]]:
    """Return the facts of every catalogued format."""
    return [fmt.facts() for fmt in all_formats().values()]


def families() -> list[dict[str, Any]]:
    """Return how names spell out the fields of each family of formats, with examples."""
    return [{"name": f.what.partition(":")[0], "what": f.what, "examples": list(f.examples)} for f in all_families()]


def presets() -> list[dict[str, Any]]:
    """Return name, spelling and bits per element of every preset."""
    return [
        {"name": name, "spelling": str(cast_of(name)), "bits_per_element": cast_of(name).bits_per_element(SHAPE)}
        for name in PRESETS
    ]


def describe(name: str, seed: int = 0) -> dict[str, Any]:
    """Return everything known of one format, preset or cast spelling; InputError with the nearest names.

    ``sqnr_db``: per distribution, in dB: a bare format under its best fixed scale, or a cast ``as given``, and both at
    every tile size (None: nothing is lost).
    """
    cast = cast_of(name)
    fmt = cast.format
    plain = cast == Cast(fmt)
    found = {**fmt.facts(), "name": fmt.name if plain else name, "element": fmt.name, "reach": asdict(reach(fmt))}
    if not plain:
        found |= {"spelling": str(cast), "bits_per_element": cast.bits_per_element(SHAPE)}
    if fmt.bits <= MAC_BITS:
        unit = mac(fmt, fmt)
        found["hardware"] = asdict(unit) | {"gates": unit.gates, "energy": unit.energy, "area": unit.area}
    if fmt.bits <= TABLE_BITS:
        found["values"] = fmt.values().tolist()
    errors = {d.name: format_error(fmt, d) if plain else cast_error(cast, d, seed=seed) for d in USUAL}
    at = {d: {"as given": _finite(e.sqnr)} | _at_tiles(cast, d, seed) for d, e in errors.items()}
    return {**found, "error": _error(errors[NORMAL.name], fmt), "sqnr_db": at}


def _at_tiles(cast: Cast, name: str, seed: int) -> dict[str, float | None]:
    return {
        str(size).removesuffix("+pad"): _finite(cast_error(at_tile(cast, size), distribution(name), seed=seed).sqnr)
        for size in TILES
    }


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def _error(error: FormatError, fmt: Format) -> dict[str, Any]:
    return {
        "distribution": "N(0,1)" if is_signed(fmt) else "|N(0,1)|",
        "scale": error.scale,
        "mse": error.mse,
        "sqnr_db": error.sqnr,
    }

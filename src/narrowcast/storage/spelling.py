"""Storages by their spelling."""

import re
from functools import lru_cache

from narrowcast.errors import InputError
from narrowcast.formats import find, format, multi
from narrowcast.quantize import cast
from narrowcast.storage.coded import Coded
from narrowcast.storage.expansion import Expanded
from narrowcast.storage.logarithmic import LogTile
from narrowcast.storage.parts import Parts
from narrowcast.storage.storage import Storage

_EXPANDED = re.compile(r"([^/]+)/1x([1-9]\d*)\+pad/expanded")
_LOGARITHMIC = re.compile(r"logfmt([1-9]\d?)/1x([1-9]\d*)\+pad")
_PARTS = re.compile(r"(.+)x([2-4])")


@lru_cache(maxsize=256)
def _parse(spelling: str) -> Storage:
    if expanded := _EXPANDED.fullmatch(spelling):
        return Expanded(format(expanded[1]), int(expanded[2]))
    if tile := _LOGARITHMIC.fullmatch(spelling):
        return LogTile(int(tile[1]), int(tile[2]))
    parts = _PARTS.fullmatch(spelling)
    if parts and find(parts[1]) is not None:
        return Parts(multi(parts[1], int(parts[2])))
    try:
        return Coded(cast(spelling))
    except InputError as error:
        raise InputError(f"storage {spelling!r}: {error} (a cast, FORMAT/1xN+pad/expanded, or bfloat16x2)") from None


def storage(spelling: str | Storage) -> Storage:
    """Return the storage that ``spelling`` names.

    A cast (``e4m3fn/tensor/fp32``, ``bfloat16/tensor/one/stochastic``), COAT's expansion of groups
    (``e4m3fn/1x128+pad/expanded``), LogFMT (``logfmt8/1x128+pad``) or parts (``bfloat16x2``). Raises InputError with
    the cast's own message where it is none of them.
    """
    return spelling if isinstance(spelling, Storage) else _parse(spelling)

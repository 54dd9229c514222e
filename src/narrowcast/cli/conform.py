"""``narrowcast formats conform``: hold someone else's encoder against a format, bit for bit."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from narrowcast.cli.common import JsonFlag, console, emit
from narrowcast.errors import CheckFailed, InputError, nearest
from narrowcast.testing import conform as check


def conform(
    function: Annotated[str, typer.Argument(help="Encoder or rounder, MODULE:FUNCTION or FILE.py:FUNCTION.")],
    format: Annotated[str, typer.Option("--format", help="Format, preset or cast spelling that it should follow.")],
    rounding: Annotated[str | None, typer.Option("--rounding", help="Rounding mode [nearest-even].")] = None,
    scale_rule: Annotated[str | None, typer.Option("--scale-rule", help="Of a block format, e.g. e8m0-ceil.")] = None,
    tile: Annotated[str | None, typer.Option("--tile", help="Of a block format, e.g. 1x32.")] = None,
    decode: Annotated[str | None, typer.Option("--decode", help="Its decoder, checked too.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", help="codes, values, codes+scales, dequantized [as it looks].")
    ] = None,
    arrays: Annotated[str | None, typer.Option("--arrays", help="torch or numpy [what works].")] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="What it is given: float32, bfloat16, float16.")] = "float32",
    leave_out: Annotated[
        str, typer.Option("--leave-out", help="Classes of input that it refuses, e.g. NaN,infinity.")
    ] = "",
    as_json: JsonFlag = False,
) -> None:
    """Run an encoder through every input that matters; say where its bits differ first, and which rule it follows.

    Runs the code of MODULE. Exit status 1 where it does not conform.

    Example: narrowcast formats conform mykernels:to_fp4 --format e2m1fn --scale-rule e8m0-ceil --tile 1x32
    """
    report = check(
        loaded(function),
        loaded(decode) if decode else None,
        format=format,
        rounding=rounding,
        scale_rule=scale_rule,
        tile=tile,
        kind=kind,
        arrays=arrays,
        dtype=dtype,
        leave_out=[word for word in leave_out.split(",") if word],
        names=(function, decode or ""),
    )
    emit(report.as_dict(), as_json, lambda: console.print(str(report), soft_wrap=True))
    if not report.conforms:
        wrong = [finding for finding in report.findings if finding.differ]
        raise CheckFailed("; ".join(f"{f.function}: {f.differ} of {f.count} answers differ" for f in wrong))


def loaded(path: str) -> Callable[..., Any]:
    """Return the function at ``MODULE:FUNCTION`` or ``FILE.py:FUNCTION``; InputError where there is none."""
    place, colon, name = path.rpartition(":")
    if not (colon and place and name):
        raise InputError(
            f"{path!r} names no function: expected MODULE:FUNCTION or FILE.py:FUNCTION, e.g. mykernels:encode"
        )
    found: Any = _module(place)
    for part in name.split("."):
        if not hasattr(found, part):
            known = [word for word in dir(found) if not word.startswith("_")]
            raise InputError(f"{place} has no {part!r}{nearest(part, known)}")
        found = getattr(found, part)
    if not callable(found):
        raise InputError(f"{path} is of type {type(found).__name__}, expected a function of an array")
    return found  # type: ignore[no-any-return]


def _module(place: str) -> Any:
    """Import a module, or a file, with the current folder on the path, as ``python -m`` would."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        if not Path(place).is_file():
            raise InputError(f"{place}: no such file")
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except InputError:
        raise
    except ModuleNotFoundError as error:
        raise InputError(
            f"{place} cannot be imported: {error}; run where it can be, or give a file: path/to/it.py"
        ) from None
    except Exception as error:
        raise InputError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error

"""Floor 8: the command. Each verb is one module of this package with one function of the same name.

A verb's module is imported only when the verb is called, so that `narrowcast formats` never loads a model library.
The last paragraph of a verb's docstring, beginning with ``Example:``, is shown below its options. A verb may have verbs
within it, which are modules beside it: `narrowcast formats conform` is `cli/conform.py`; any other word is an argument.
Bad input ends with one ``error:`` line on stderr: no traceback, nothing on stdout.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import typer
from typer.core import TyperCommand, TyperGroup

from narrowcast.errors import InputError, NarrowcastError, nearest, require_torch

VERBS = {
    "compare": "The main job: one model, one corpus, many recipes, side by side.",
    "train": "Train one model under one recipe, resumable.",
    "quantize": "Quantize a trained model folder, with a before/after report.",
    "evaluate": "Perplexity of a run or a model folder.",
    "formats": "List, show and compare number formats.",
    "recipes": "List and show recipes, each with its paper.",
    "verify": "Prove on this machine that kernels give the emulation's bits.",
    "bench": "Speed on this machine's GPU, beside peers in one run.",
    "studies": "The papers, what each claims, and what was measured here.",
    "study": "Run one study, or show its committed result.",
    "report": "Rebuild the HTML page of a finished run.",
}
#: verbs within a verb: one module and one function each, named by the second word
WITHIN: dict[str, dict[str, str]] = {
    "formats": {
        "conform": "Hold someone else's encoder against a format, bit for bit.",
        "convert": "Rewrite a safetensors file in a format; what each tensor lost.",
        "dequantize": "Say what a quantized model folder is; write it with plain weights.",
    },
}
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
_PIPE_CLOSED = 1  # as rich answers it


def _app(**options: Any) -> typer.Typer:
    return typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown", **options)


def load(verb: str) -> Any:
    """Import ``verb`` and return its command; InputError where torch is too old for it."""
    require_torch(torch.__version__)
    callback: Callable[..., None] = getattr(import_module(f"narrowcast.cli.{verb}"), verb)
    prose, _, example = (callback.__doc__ or "").partition("Example:")
    prose += "".join(f"\n\n`narrowcast {verb} {name}`: {what}" for name, what in WITHIN.get(verb, {}).items())
    app = _app()
    app.command(verb, help=prose, epilog=f"Example: {example.strip()}" if example else None)(callback)
    return typer.main.get_command(app)


class _Verbs(TyperGroup):
    """A group whose verbs are imported when called, not when listed."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return TyperCommand(cmd_name, help=VERBS[cmd_name])  # all that the overview shows

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str, Any, list[str]]:
        verb, *rest = args
        if verb not in VERBS:
            raise InputError(f"unknown verb {verb!r}{nearest(verb, VERBS)}")
        if rest and rest[0] in WITHIN.get(verb, {}):
            return f"{verb} {rest[0]}", load(rest[0]), rest[1:]
        return verb, load(verb), rest


app = _app(cls=_Verbs, epilog="Example: narrowcast compare --recipes bf16,fp8-rowwise,mxfp4")


@app.callback(invoke_without_command=True)
def _overview(
    ctx: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version.", is_eager=True),
) -> None:
    """Write the precision once; emulate it bit for bit anywhere; run it at tensor-core speed where a GPU has it."""
    if version:
        from narrowcast import __version__

        print(f"narrowcast {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def _fail(message: str, status: int) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return status


def run(args: list[str] | None = None) -> int:
    """Run the command with ``args`` (default: the process's) and return its exit status.

    0 done, 1 a check failed, 2 bad input, 130 interrupted.
    """
    try:
        status = int(app(args, standalone_mode=False, prog_name="narrowcast") or 0)
        return _fail("interrupted", status) if status == _INTERRUPTED else status  # typer answers Ctrl-C so
    except NarrowcastError as error:
        return _fail(str(error), error.exit_status)
    except typer.TyperException as error:  # an option that does not exist or does not parse
        return _fail(error.format_message(), error.exit_code)
    except torch.OutOfMemoryError as error:
        return _fail(f"{error}; use a smaller model or batch, or --device cpu", InputError.exit_status)
    except BrokenPipeError:  # the reader has seen enough (`narrowcast formats | head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}", InputError.exit_status)
    except (KeyboardInterrupt, typer.Abort):  # before and after typer's own hand is on it
        return _fail("interrupted", _INTERRUPTED)


def main() -> None:
    """Run the command and leave the process with its exit status."""
    sys.exit(run())

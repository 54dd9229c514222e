"""Reading compressed-tensors checkpoints: which args hold for which module, and what their tensors say."""

import re
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError
from narrowcast.io.compressed.args import cast_from
from narrowcast.io.compressed.formats import format_named, is_plain, name_of, values_of
from narrowcast.io.foreign.reader import Reader, ReadWeight
from narrowcast.scaling import Divided, DividedTwoLevel

_SUFFIXES = (
    "weight_packed", "weight", "weight_scale", "weight_shape", "weight_zero_point", "weight_global_scale",
    "weight_g_idx",
    "input_scale", "input_zero_point", "input_global_scale",
)  # fmt: skip
_FLOATS = {("float", 8): "e4m3fn", ("float", 4): "e2m1fn"}


def open_compressed(config: dict[str, Any], names: frozenset[str]) -> Reader | None:
    """Return how to read a compressed-tensors checkpoint, or None where it is none."""
    if config.get("quant_method") != "compressed-tensors":
        return None
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(g, dict) and g.get("weights") for g in groups.values()):
        raise InputError("compressed-tensors checkpoint: config_groups lists no args of weights; presets are not read")
    schemes = list(groups.values())
    formats = "; ".join(dict.fromkeys(_described(s) for s in schemes))
    if config.get("kv_cache_scheme"):
        formats += "; keys and values e4m3fn"
    return Reader("compressed-tensors", formats, _SUFFIXES, ("weight_scale",), partial(_read, config, schemes))


def _described(scheme: dict[str, Any]) -> str:
    weights, inputs = scheme["weights"], scheme.get("input_activations")
    text = f"{_args_in_words(weights)}"
    return text + (f", inputs {_args_in_words(inputs)}" if inputs else ", inputs wide")


def _args_in_words(args: dict[str, Any]) -> str:
    bits, kind = int(args.get("num_bits", 8)), str(args.get("type", "int"))
    name = _FLOATS.get((kind, bits), f"{kind}{bits}")
    size = args.get("group_size") or args.get("block_structure")
    over = f"{args.get('strategy', 'tensor')}{f' {size}' if size else ''}"
    zero = "" if args.get("symmetric", True) else " with zero points"
    how = {True: " dynamic", "local": " dynamic", False: ""}.get(args.get("dynamic", False), "")
    return f"{name} per {over}{zero}{how}"


def scheme_of(module: str, schemes: list[dict[str, Any]], ignore: list[str]) -> dict[str, Any] | None:
    """Return the scheme of a linear module: exact names and patterns before class names; None if ignored."""
    if any(_matches(module, entry) for entry in ignore):
        return None
    for scheme in schemes:
        if any(_matches(module, target) for target in scheme["targets"]):
            return scheme
    return next((s for s in schemes if "Linear" in s["targets"]), None)


def _matches(module: str, entry: str) -> bool:
    return bool(re.match(entry.removeprefix("re:"), module)) if entry.startswith("re:") else entry == module


def _read(config: dict[str, Any], schemes: list[dict[str, Any]], module: str, parts: dict[str, Tensor]) -> ReadWeight:
    scheme = scheme_of(module, schemes, config.get("ignore") or [])
    if scheme is None:
        raise InputError(f"{module}: has quantized tensors, but no group of its quantization_config targets it")
    weights, inputs = scheme["weights"], scheme.get("input_activations")
    name = scheme.get("format") or config.get("format")
    if name in (None, "mixed-precision", "dense"):
        name = name_of(weights, inputs)
    try:
        if not is_plain(parts):
            read = ReadWeight(dense=values_of(parts, weights))
        else:
            read = ReadWeight(format_named(str(name), weights).read(parts, weights))
    except KeyError as missing:
        raise InputError(f"{module}: tensor {missing.args[0]} of format {name} is missing") from None
    except InputError as error:
        raise InputError(f"{module}: {error}") from None
    return _with_input(module, read, inputs, parts) if inputs else read


def _with_input(module: str, read: ReadWeight, args: dict[str, Any], parts: dict[str, Tensor]) -> ReadWeight:
    """Add the input's cast; its carrier is that of the scales, the model's dtype where they are plain."""
    scale = parts["weight_scale"].dtype
    dtype = scale if scale in (torch.float32, torch.float16) else torch.bfloat16
    if not args.get("symmetric", True):
        raise InputError(f"{module}: its input has a zero point, which no cast expresses")
    activation = cast_from(args, dtype, "input")
    fixed = None
    if args.get("dynamic", False) is False:
        fixed = float(parts["input_scale"].float().max())
    elif args["dynamic"] == "local":
        fixed = 1.0 / float(parts["input_global_scale"].min())
    if fixed is not None:
        assert isinstance(activation.scale, Divided | DividedTwoLevel)
        activation = replace(activation, scale=replace(activation.scale, fixed=fixed))
    return ReadWeight(read.quantized, read.dense, activation)

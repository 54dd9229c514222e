"""The formats of compressed-tensors: which tensors stand for one quantized weight. One row each.

A row writes a `QTensor` as tensors by local name (``weight_packed``, ``weight_scale``, ...) and reads it back.
Shapes and dtypes: export-reference, section 4.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import InputError, nearest
from narrowcast.formats.packing import pack, unpack
from narrowcast.io.compressed.args import cast_from
from narrowcast.io.compressed.words import from_words, offset_binary, to_words
from narrowcast.quantize import Cast, QTensor
from narrowcast.scaling import Narrow, ZeroPoint

#: (weight, dtype of its scales) -> tensors by local name
Write = Callable[[QTensor, torch.dtype], dict[str, Tensor]]
#: (tensors by local name, args object of the weight) -> weight
Read = Callable[[dict[str, Tensor], dict[str, Any]], QTensor]


@dataclass(frozen=True)
class Format:
    """One format of compressed-tensors.

    Attributes:
        name: as config.json says it.
        write, read: see `Write` and `Read`.
        dtypes: of models that loaders can decode it into; transformers decodes some to bfloat16 whatever the model is.
    """

    name: str
    write: Write
    read: Read
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)


def name_of(weights: dict[str, Any], inputs: dict[str, Any] | None) -> str:
    """Return the format of a layer with these args objects."""
    if weights["type"] == "int":
        return "int-quantized" if inputs and inputs["type"] == "int" and weights["num_bits"] == 8 else "pack-quantized"
    if weights["strategy"] == "tensor_group":
        return "nvfp4-pack-quantized"
    if weights["num_bits"] == 4:
        return "mxfp4-pack-quantized"
    return "mxfp8-quantized" if weights["strategy"] == "group" else "float-quantized"


# --- what they share ---


def codes_of(q: QTensor) -> Tensor:
    """Return the element codes of a matrix, int32 ``[N, K]``, without padding."""
    codes = unpack(q.codes, q.cast.format.bits, q.padded[-1])
    return codes[: q.shape[0], : q.shape[1]].contiguous()


def _scales(q: QTensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return the factors that multiply back, one per tile as ``[rows, tiles of a row]``, and the zero points, if any.

    Factors are in ``dtype`` if that is exact, else in float32, which loaders take too (transformers rounds it to the
    model's dtype, vLLM keeps it). Zero points are signed, int8.
    """
    (both,) = q.cast.scale.restore(q.scales, q.tensor_scale)
    factor, *zero = (_squeezed(one, q) for one in q.cast.scale.numbers.apart(both))
    narrow = factor.to(dtype)
    return narrow if torch.equal(narrow.float(), factor) else factor, zero[0].to(torch.int8) if zero else None


def _squeezed(stored: Tensor, q: QTensor) -> Tensor:
    """Return one number per tile as a plain matrix ``[rows, tiles of a row]``, ``[1]`` for a whole tensor."""
    if q.cast.tile.is_tensor:
        return stored.reshape(1)
    height, width = max(q.cast.tile.rows, 1), q.cast.tile.cols or q.padded[1]
    return stored.reshape(q.padded[0] // height, q.padded[1] // width).contiguous()


def restored(cast: Cast, codes: Tensor, stored: Tensor, tensor: Tensor | None, dtype: torch.dtype) -> QTensor:
    """Return the weight of unpacked codes ``[N, K]`` and one stored scale per tile."""
    rows, columns = (int(n) for n in codes.shape)
    padded = cast.tile.padded_shape((rows, columns), "weight")
    codes = torch.nn.functional.pad(codes, (0, padded[1] - columns, 0, padded[0] - rows))
    expected, numbers = cast.tile.count(padded), cast.scale.numbers.count
    if stored.numel() != expected * numbers:
        raise InputError(
            f"{stored.numel() // numbers} scales for a weight of {rows}x{columns}, expected {expected} (tiles of "
            f"{cast.tile})"
        )
    blocks, inside = cast.tile.blocks(codes)
    shape = [1 if axis - blocks.dim() in inside or axis in inside else n for axis, n in enumerate(blocks.shape)]
    shape[-1] = numbers
    packed = pack(codes, cast.format.bits)
    whole = tensor.reshape(()) if tensor is not None else None
    return QTensor(packed, stored.reshape(shape), whole, cast, (rows, columns), padded, dtype)


def plain(cast: Cast, codes: Tensor, scale: Tensor, zero: Tensor | None = None) -> QTensor:
    """Return the weight of codes ``[N, K]`` under scales that are plain floats.

    Scales, and signed zero points where the cast has some, have one entry a tile: ``[N, tiles of a row]``.
    """
    stored = scale.float()
    rule = cast.scale.rule if isinstance(cast.scale, ZeroPoint) else cast.scale
    if isinstance(rule, Narrow):
        stored = rule.format.encode(stored)
    if zero is not None:
        stored = torch.stack([stored, zero.to(stored.dtype)], -1)
    return restored(cast, codes, stored, None, scale.dtype)


# --- 8-bit floats and integers, one element a byte ---


def _write_float(q: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
    codes = codes_of(q).to(torch.uint8)
    return {"weight": codes.view(torch.float8_e4m3fn), "weight_scale": _scales(q, dtype)[0]}


def _read_float(parts: dict[str, Tensor], args: dict[str, Any]) -> QTensor:
    weight, scale = parts["weight"], parts["weight_scale"]
    return plain(cast_from(args, scale.dtype, "weight"), weight.view(torch.uint8).int(), scale)


def _write_int(q: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
    bits = q.cast.format.bits
    codes = codes_of(q)
    signed = codes - ((codes >> (bits - 1)) << bits)
    scale, zero = _scales(q, dtype)
    more = {} if zero is None else {"weight_zero_point": zero}
    return {"weight": signed.to(torch.int8), "weight_scale": scale} | more


def _read_int(parts: dict[str, Tensor], args: dict[str, Any]) -> QTensor:
    scale = parts["weight_scale"]
    mask = (1 << int(args.get("num_bits", 8))) - 1
    zero = None if args.get("symmetric", True) else parts["weight_zero_point"]
    return plain(cast_from(args, scale.dtype, "weight"), parts["weight"].int() & mask, scale, zero)


# --- integers of 2 to 8 bits in int32 words ---


def _write_packed(q: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
    bits = q.cast.format.bits
    words = to_words(offset_binary(codes_of(q), bits), bits)
    scale, zero = _scales(q, dtype)
    found = {"weight_packed": words, "weight_scale": scale, "weight_shape": torch.tensor(q.shape)}
    if zero is not None:  # packed along N
        codes = offset_binary(zero.int() & ((1 << bits) - 1), bits)
        found["weight_zero_point"] = to_words(codes.mT.contiguous(), bits).mT.contiguous()
    return found


def _read_packed(parts: dict[str, Tensor], args: dict[str, Any]) -> QTensor:
    bits, scale = int(args["num_bits"]), parts["weight_scale"]
    codes = from_words(parts["weight_packed"], bits, _columns(parts))
    zero = None if args.get("symmetric", True) else _zeros(parts, bits, len(codes)) - (1 << (bits - 1))
    return plain(cast_from(args, scale.dtype, "weight"), offset_binary(codes, bits), scale, zero)


def _zeros(parts: dict[str, Tensor], bits: int, rows: int) -> Tensor:
    """Return the zero points in offset binary, int32 ``[N, groups]``."""
    return from_words(parts["weight_zero_point"].mT.contiguous(), bits, rows).mT


def _columns(parts: dict[str, Tensor]) -> int:
    return int(parts["weight_shape"][-1])


def is_plain(parts: dict[str, Tensor]) -> bool:
    """Return whether a cast expresses the weight: columns are in groups as they stand."""
    index = parts.get("weight_g_idx")
    ordered = index is not None and bool((index >= 0).all()) and not torch.equal(index, index.sort().values)
    return not ordered


def values_of(parts: dict[str, Tensor], args: dict[str, Any]) -> Tensor:
    """Return the values of any pack-quantized weight, float32 ``[N, K]``: ``(q - zero) * scale``, group by group.

    ``weight_g_idx`` names the group of each column where they are not in order.
    """
    bits, scale = int(args["num_bits"]), parts["weight_scale"].float()
    codes = from_words(parts["weight_packed"], bits, _columns(parts))
    zeros = torch.full(scale.shape, 1 << (bits - 1))
    if not args.get("symmetric", True):
        zeros = _zeros(parts, bits, len(codes))
    index = torch.arange(codes.shape[1]) // (codes.shape[1] // scale.shape[1])
    if "weight_g_idx" in parts and bool((parts["weight_g_idx"] >= 0).all()):
        index = parts["weight_g_idx"].long()
    return (codes - zeros[:, index]).float() * scale[:, index]


# --- 4-bit floats, two a byte, and block scales of one byte ---


def _write_nvfp4(q: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
    assert q.tensor_scale is not None
    return {
        "weight_packed": pack(codes_of(q), 4),
        "weight_scale": _squeezed(q.scales, q).to(torch.uint8).view(torch.float8_e4m3fn),
        "weight_global_scale": q.tensor_scale.double().reciprocal().float().reshape(1),
    }


def _read_nvfp4(parts: dict[str, Tensor], args: dict[str, Any]) -> QTensor:
    packed = parts["weight_packed"]
    cast = cast_from(args, torch.bfloat16, "weight")
    codes = unpack(packed, 4, 2 * packed.shape[1])
    whole = parts["weight_global_scale"].double().reciprocal()
    return restored(cast, codes, parts["weight_scale"].view(torch.uint8), whole, torch.bfloat16)


def _write_mxfp4(q: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"weight_packed": pack(codes_of(q), 4), "weight_scale": _squeezed(q.scales, q).to(torch.uint8)}


def _read_mxfp4(parts: dict[str, Tensor], args: dict[str, Any]) -> QTensor:
    packed = parts["weight_packed"]
    cast = cast_from(args, torch.bfloat16, "weight")
    return restored(cast, unpack(packed, 4, 2 * packed.shape[1]), parts["weight_scale"], None, torch.bfloat16)


def _write_mxfp8(q: QTensor, dtype: torch.dtype) -> dict[str, Tensor]:
    codes = codes_of(q).to(torch.uint8).view(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": _squeezed(q.scales, q).to(torch.uint8)}


def _read_mxfp8(parts: dict[str, Tensor], args: dict[str, Any]) -> QTensor:
    cast = cast_from(args, torch.bfloat16, "weight")
    return restored(cast, parts["weight"].view(torch.uint8).int(), parts["weight_scale"], None, torch.bfloat16)


_BF16 = (torch.bfloat16,)
FORMATS = {
    row.name: row
    for row in (
        Format("float-quantized", _write_float, _read_float),
        Format("int-quantized", _write_int, _read_int),
        Format("pack-quantized", _write_packed, _read_packed),
        Format("nvfp4-pack-quantized", _write_nvfp4, _read_nvfp4, _BF16),
        Format("mxfp4-pack-quantized", _write_mxfp4, _read_mxfp4, _BF16),
        Format("mxfp8-quantized", _write_mxfp8, _read_mxfp8, _BF16),
    )
}
_ALIASES = {"naive-quantized": ("float-quantized", "int-quantized")}


def format_named(name: str, args: dict[str, Any]) -> Format:
    """Return the format that config.json calls ``name``; InputError for one that is not known here."""
    if name in _ALIASES:
        name = _ALIASES[name][args.get("type", "int") == "int"]
    if name not in FORMATS:
        raise InputError(f"compressed-tensors format {name!r} is not known here{nearest(name, FORMATS)}")
    return FORMATS[name]

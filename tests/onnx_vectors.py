"""Reads ONNX's published test tensors (protobuf TensorProto) without onnx: the few fields that they use."""

import zipfile
from pathlib import Path

import numpy as np

# TensorProto.DataType: (numpy dtype of one stored item, bits of one element)
_TYPES = {
    1: (np.float32, 32), 2: (np.uint8, 8), 3: (np.int8, 8), 4: (np.uint16, 16), 5: (np.int16, 16),
    10: (np.float16, 16), 11: (np.float64, 64), 16: (np.uint16, 16), 17: (np.uint8, 8), 18: (np.uint8, 8),
    19: (np.uint8, 8), 20: (np.uint8, 8), 21: (np.uint8, 4), 22: (np.uint8, 4), 23: (np.uint8, 4),
    24: (np.uint8, 8), 25: (np.uint8, 2), 26: (np.uint8, 2),
}  # fmt: skip


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _fields(data: bytes):
    """Yield (field number, int or bytes) of one protobuf message."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
        else:
            assert key & 7 == 2, "only varints and byte strings occur in these files"
            size, at = _varint(data, at)
            value, at = data[at : at + size], at + size
        yield key >> 3, value


def tensor(data: bytes) -> np.ndarray:
    """Return the tensor as numbers, or as codes (one per element, unsigned) for types that numpy lacks."""
    dims, kind, raw = [], 0, b""
    for field, value in _fields(data):
        match field:
            case 1:
                dims += [value] if isinstance(value, int) else list(value)
            case 2:
                kind = value
            case 5:  # int32_data: one packed varint per stored byte
                at = 0
                while at < len(value):
                    item, at = _varint(value, at)
                    raw += bytes([item & 0xFF])
            case 9:
                raw = value
    dtype, bits = _TYPES[kind]
    items = np.frombuffer(raw, dtype=dtype)
    if bits < 8:  # element 0 in the lowest bits
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        items = ((items[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)
    return items[: int(np.prod(dims, dtype=int))].reshape(dims)


def case(archive: Path, name: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Return (inputs, output) of one published case."""
    with zipfile.ZipFile(archive) as zipped:
        folder = f"{name}/test_data_set_0/"
        inputs = sorted(n for n in zipped.namelist() if n.startswith(f"{folder}input_"))
        return [tensor(zipped.read(n)) for n in inputs], tensor(zipped.read(f"{folder}output_0.pb"))

"""CUDA C++ through the driver: source compiled by NVRTC at first use, kept on disk, loaded and launched by ctypes.

No other compiler is needed, nothing is linked: NVRTC comes with every CUDA build of torch, the driver with the GPU.
Machine code lies under ``$XDG_CACHE_HOME/narrowcast`` (default ``~/.cache``), by the hash of all that goes into it.
"""

import ctypes
import hashlib
import os
from contextlib import suppress
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_void_p
from functools import lru_cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from narrowcast.errors import CheckFailed
from narrowcast.names import cache_folder

ARCH = "sm_90a"
_TYPES = {torch.uint8: 0, torch.float32: 7}  # CUtensorMapDataType
_SHARED_LIMIT = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_CLUSTER = 4  # CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION


@lru_cache(maxsize=1)
def nvrtc() -> ctypes.CDLL:
    """Return the run-time compiler that torch was built with; CheckFailed where there is none."""
    major = (torch.version.cuda or "13").partition(".")[0]
    name = f"libnvrtc.so.{major}"
    spec = find_spec("nvidia")
    roots = (spec.submodule_search_locations or ()) if spec else ()
    beside = [path for root in roots for path in Path(root).glob(f"*/lib/{name}")]
    parts = [part for path in beside for part in path.parent.glob(f"libnvrtc-builtins.so.{major}.*")]
    for part in parts:  # NVRTC looks for it by its name: it is to be loaded already
        with suppress(OSError):
            ctypes.CDLL(str(part))
    for path in (*map(str, beside), name):
        with suppress(OSError):
            return ctypes.CDLL(path)
    raise CheckFailed(f"{name} was not found; it comes with CUDA builds of torch, or by pip install nvidia-cuda-nvrtc")


def source(name: str) -> str:
    """Return the text of a kernel in ``kernels/cuda``."""
    return (files("narrowcast.kernels") / "cuda" / f"{name}.cu").read_text()


def compiled(name: str, defines: dict[str, int], cache: Path | None = None) -> bytes:
    """Return machine code of ``kernels/cuda/NAME.cu`` under ``defines``, from the cache where it is there.

    Raises CheckFailed with the compiler's first error.
    """
    options = [f"--gpu-architecture={ARCH}", "--std=c++17", *(f"-D{key}={value}" for key, value in defines.items())]
    text = source(name)
    major, minor = c_int(), c_int()
    _ok(nvrtc().nvrtcVersion(byref(major), byref(minor)), "nvrtcVersion")
    key = hashlib.sha256("\0".join([text, f"{major.value}.{minor.value}", *options]).encode()).hexdigest()[:32]
    path = (cache or cache_folder()) / f"{name}-{key}.cubin"
    if path.exists():
        return path.read_bytes()
    code = _compile(name, text, options)
    with suppress(OSError):  # a folder that cannot be written costs the next process a third of a second
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(code)
        part.replace(path)
    return code


def _compile(name: str, text: str, options: list[str]) -> bytes:
    library, program = nvrtc(), c_void_p()
    _ok(library.nvrtcCreateProgram(byref(program), text.encode(), f"{name}.cu".encode(), 0, None, None), "nvrtc")
    try:
        given = (c_char_p * len(options))(*(option.encode() for option in options))
        if library.nvrtcCompileProgram(program, len(options), given):
            log = _read(program, "nvrtcGetProgramLog").decode(errors="replace")
            line = next((one for one in log.splitlines() if "error" in one), log.strip())
            raise CheckFailed(f"kernel {name} ({' '.join(options)}): NVRTC does not compile it here: {line}")
        return _read(program, "nvrtcGetCUBIN")
    finally:
        library.nvrtcDestroyProgram(byref(program))


def _read(program: c_void_p, what: str) -> bytes:
    size = c_size_t()
    _ok(getattr(nvrtc(), f"{what}Size")(program, byref(size)), what)
    text = ctypes.create_string_buffer(size.value)
    _ok(getattr(nvrtc(), what)(program, text), what)
    return text.raw


@lru_cache(maxsize=1)
def _cuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _ok(status: int, what: str) -> None:
    if status:
        raise CheckFailed(f"{what} failed with status {status}")


def _call(name: str, *arguments: Any) -> None:
    """Call the driver; CheckFailed with its words where it fails."""
    status = getattr(_cuda(), name)(*arguments)
    if status:
        text = c_char_p()
        _cuda().cuGetErrorString(status, byref(text))
        raise CheckFailed(f"{name} failed with status {status}: {(text.value or b'?').decode()}")


class _Attribute(ctypes.Structure):
    _fields_ = (("id", c_int), ("pad", c_int), ("value", c_uint * 16))


class _Config(ctypes.Structure):
    _fields_ = (
        ("grid", c_uint * 3), ("block", c_uint * 3), ("shared", c_uint), ("stream", c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)), ("count", c_uint),
    )  # fmt: skip


class Kernel:
    """A kernel in the current device's memory.

    Attributes:
        threads, shared: threads and bytes of shared memory of a block.
        clusters: how many clusters of blocks the device works on at once.
    """

    def __init__(self, code: bytes, name: str, threads: int, shared: int, cluster: int) -> None:
        self.threads, self.shared = threads, shared
        self._module, self._function = c_void_p(), c_void_p()
        _call("cuModuleLoadData", byref(self._module), code)
        _call("cuModuleGetFunction", byref(self._function), self._module, name.encode())
        _call("cuFuncSetAttribute", self._function, c_int(_SHARED_LIMIT), c_int(shared))
        size = _Attribute(_CLUSTER, 0, (c_uint * 16)(cluster, 1, 1))
        config = _Config((cluster, 1, 1), (threads, 1, 1), shared, None, ctypes.pointer(size), 1)
        found = c_int()
        _call("cuOccupancyMaxActiveClusters", byref(found), self._function, byref(config))
        self.clusters = found.value

    def __call__(self, blocks: int, *arguments: Any) -> None:
        """Launch on torch's current stream; ``arguments`` are ctypes values, as the kernel declares them."""
        pointers = (c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
        stream = c_void_p(torch.cuda.current_stream().cuda_stream)
        grid, block = (c_uint(blocks), c_uint(1), c_uint(1)), (c_uint(self.threads), c_uint(1), c_uint(1))
        _call("cuLaunchKernel", self._function, *grid, *block, c_uint(self.shared), stream, pointers, None)


class TensorMap(ctypes.Structure):
    """What the copy engine knows of a matrix: 128 bytes, aligned to 64."""

    _fields_ = (("words", ctypes.c_uint64 * 16),)


def tensor_map(x: Tensor, box: tuple[int, int], swizzled: bool) -> TensorMap:
    """Return a map of a matrix whose rows are contiguous, for boxes of ``(rows, columns)``; zeros lie beyond its edges.

    Args:
        x: uint8 or float32 ``[R, C]``, aligned to 16 bytes, as are its rows.
        swizzled: whether rows of a box, 128 bytes, lie in shared memory as the tensor cores read them.
    """
    room = ctypes.create_string_buffer(128 + 64)
    made = TensorMap.from_buffer(room, -ctypes.addressof(room) % 64)
    sizes = (ctypes.c_uint64 * 2)(x.shape[1], x.shape[0])
    row = x.stride(0) if x.shape[0] > 1 else -(-x.shape[1] // 16) * 16  # a single row's stride may be anything
    strides = (ctypes.c_uint64 * 1)(row * x.element_size())
    boxes, steps = (ctypes.c_uint32 * 2)(box[1], box[0]), (ctypes.c_uint32 * 2)(1, 1)
    how = (0, 3 if swizzled else 0, 2, 0)  # not interleaved; swizzle of 128 bytes; whole lines into L2; zeros outside
    what = (c_int(_TYPES[x.dtype]), c_uint(2), c_void_p(x.data_ptr()))
    _call("cuTensorMapEncodeTiled", byref(made), *what, sizes, strides, boxes, steps, *map(c_int, how))
    return made

"""Kernels: their bits in Triton's interpreter, what they compile to, and what the door says where there is none."""

import json

import pytest
import torch
from tests.kernels.apart import HERE, needs_triton, run

import narrowcast as nc
from narrowcast.backend import choose_quantize
from narrowcast.errors import InputError
from narrowcast.formats import Minifloat
from narrowcast.quantize import Cast, cast


@needs_triton
@pytest.mark.parametrize("half", ["cast or format", "not (cast or format)"])
def test_bits_in_the_interpreter(half):
    out = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "bits.py"), "-k", half], interpret=True)
    assert " passed" in out and "skipped" not in out


@needs_triton
def test_bits_of_both_orientations_in_the_interpreter():
    out = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "both_bits.py")], interpret=True)
    assert " passed" in out and "skipped" not in out


@needs_triton
def test_what_verify_runs_in_the_interpreter():
    out = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "verify_bits.py")], interpret=True)
    assert " passed" in out and "skipped" not in out


@needs_triton
def test_compiled_for_a_gpu_that_is_not_here():
    """No fused multiply-add, no flushed subnormals, IEEE division; nothing in local memory, 16-byte loads."""
    kernels = json.loads(run([str(HERE / "ptx.py")], interpret=False))
    gates = kernels.pop("gates")  # its reciprocal is Newton's, by fused multiply-adds of its own
    assert ".local" not in gates and "ld.global.v4" in gates and "ld.global.v2" in gates and "st.global.v4" in gates
    assert kernels
    for name, (ptx, local) in kernels.items():
        assert local == 0, name
        assert not [line for line in ptx.splitlines() if "fma." in line or ".ftz" in line or "div.full" in line], name
        assert "ld.global.v4" in ptx and "st.global.v" in ptx, name
    assert "div.rn.f32" in kernels["nvfp4"][0]


REASONS = {
    "hif8/1x32/fp32/hybrid": "no kernel for rounding hybrid",
    "e4m3fn/1x12/fp32": "multiple of 8",
    "e4m3fn/256x256/fp32": "at most 32768 elements",
    "e4m3fn/1x512/fp32/nearest-even/hadamard256": "up to hadamard128",
}


@needs_triton
@pytest.mark.parametrize("spelling", REASONS)
def test_a_cast_without_a_kernel_says_why(spelling, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    x = torch.ones(256, 1536)
    choice = choose_quantize("auto", cast(spelling), x)
    assert choice.backend == "emulate" and REASONS[spelling] in choice.why
    with pytest.raises(InputError, match=r"backend 'native' cannot run here: .*use 'auto' or 'emulate'"):
        nc.quantize(x, spelling, backend="native")


@needs_triton
def test_what_else_has_no_kernel(monkeypatch):
    x, narrow = torch.ones(8, 32), cast("mxfp8")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert choose_quantize("auto", narrow, x).why.startswith("device cpu: kernels need a CUDA device")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "not torch.float64" in choose_quantize("auto", narrow, x.double()).why
    impostor = Cast(Minifloat("e4m3fn", 5, 2, 15))
    assert "not what its name says" in choose_quantize("auto", impostor, x).why
    with pytest.raises(InputError, match=r"unknown backend 'cuda'.*"):
        nc.quantize(x, "mxfp8", backend="cuda")

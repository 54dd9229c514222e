"""The fused optimizer step: its bits in Triton's interpreter, and what it compiles to."""

import json

from tests.kernels.apart import HERE, needs_triton, run

pytestmark = needs_triton


def test_bits_in_the_interpreter():
    out = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "optimizer_bits.py")], interpret=True)
    assert " passed" in out and "skipped" not in out


def test_compiled_for_a_gpu_that_is_not_here():
    """No fused multiply-add, nothing in local memory, IEEE roots and quotients, 16 bytes at a time."""
    kernels = json.loads(run([str(HERE / "optimizer_ptx.py")], interpret=False))
    assert kernels
    for name, (ptx, local) in kernels.items():
        assert local == 0, name
        assert not [line for line in ptx.splitlines() if "fma." in line or "div.full" in line], name
        assert "sqrt.rn.f32" in ptx and "div.rn.f32" in ptx, name
        assert "ld.global.v4" in ptx and "st.global.v4" in ptx, name
    assert "cvt.rn.satfinite.e4m3x2.f32" in kernels["fp8-adam-blocks"][0]

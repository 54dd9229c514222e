"""Kernels against the definition, bit for bit: on a GPU where there is one, else in Triton's interpreter.

Not collected by name: `test_kernels.py` runs this file in a process of its own, for the interpreter must be chosen
before Triton is imported. On a machine with a GPU: ``pytest tests/kernels/bits.py``.
"""

import math
import os
from dataclasses import replace

import pytest
import torch
from tests.contract.test_casts_contract import TABLE, source
from tests.witnesses import random_float32

import narrowcast as nc
from narrowcast.backend import choose_quantize
from narrowcast.backend import narrow as narrow_by
from narrowcast.formats import Integer, Minifloat, Stream, families, formats, roundings, unpack
from narrowcast.formats.tabulated import Tabulated
from narrowcast.kernels import launch
from narrowcast.kernels.native import quantize
from narrowcast.kernels.support import reason
from narrowcast.quantize import Cast, QTensor, cast
from narrowcast.scaling import Delayed

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in the interpreter
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STREAM = Stream((77 << 32) + 5, 3, 2)  # a seed of two words
WITH_KERNEL = [s for s in TABLE if reason(cast(s)) is None]
WIDTHS = ("int2", "int3", "int4", "int8", "int16", "int8_full", "uint8", "q1.6")  # the others differ in width alone
KINDS = (Minifloat, Integer, Tabulated)
EXAMPLES = [nc.format(name) for family in families() for name in family.examples]
FORMATS = [
    f
    for f in [*formats().values(), *(f for f in EXAMPLES if isinstance(f, Minifloat))]
    if isinstance(f, KINDS) and (not isinstance(f, Integer) or f.name in WIDTHS)
]
MODES = [m for m in roundings() if not m.rpartition("-")[2].isdigit() or m == "stochastic-5"]


def same(found: QTensor, expected: QTensor) -> str:
    """Where two quantized tensors differ in what is stored, or an empty string."""
    for part in ("codes", "scales", "tensor_scale"):
        a, b = getattr(found, part), getattr(expected, part)
        if a is None and b is None:
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{part}: {a.dtype} {tuple(a.shape)} instead of {b.dtype} {tuple(b.shape)}"
        wrong = ((a != b) & ~(a.isnan() & b.isnan())).nonzero()
        if len(wrong):
            at = tuple(wrong[0].tolist())
            return f"{part}: {len(wrong)} differ, first {a[at]} instead of {b[at]} at {at}"
    return "" if found.shape == expected.shape and found.dtype == expected.dtype else "shape or dtype"


def difference(narrow: Cast, x: torch.Tensor) -> str:
    x = x.to(DEVICE)
    history = [Delayed(narrow.scale.delayed.length).new(x.device) for _ in "ab"] if narrow.scale.delayed else [None] * 2
    found, expected = quantize(narrow, x, STREAM, history[0]), narrow.quantize(x, STREAM, history[1])
    if history[0] is not None and not torch.equal(history[0], history[1]):
        return "history"
    return same(found, expected)


def poisoned(x: torch.Tensor) -> torch.Tensor:
    """A copy with an infinity, a NaN and a negative NaN, far apart."""
    x = x.clone()
    x[0, 3], x[-1, -2], x[len(x) // 2, 40] = math.inf, math.nan, -math.nan
    return x


@pytest.mark.parametrize("spelling", WITH_KERNEL)
def test_every_cast_of_the_contract(spelling):
    x = poisoned(source(16, 128))
    assert not difference(cast(spelling), x if "hadamard" in spelling else x.bfloat16())


def corners(fmt: nc.Format) -> torch.Tensor:
    """Random bit patterns, NaNs among them; the values of ``fmt``, the middles between them and their neighbours."""
    values = fmt.values()[:300] if fmt.bits <= 16 else torch.randn(300, dtype=torch.float64)
    middles = ((values[1:] + values[:-1]) / 2).float()
    near = [torch.nextafter(middles, torch.full_like(middles, end)) for end in (-math.inf, math.inf)]
    x = torch.cat([random_float32(700), values.float(), middles, *near])
    return torch.nn.functional.pad(x, (0, -x.numel() % 2048)).view(1, -1)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_every_format(fmt):
    assert not difference(Cast(fmt), corners(fmt))


def every_nan(dtype: torch.dtype) -> torch.Tensor:
    """Every NaN of a 16-bit type, each beside a number, filled up to rows of 64."""
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    nans = x[x.isnan()]
    x = torch.stack([nans, torch.linspace(-3, 3, len(nans)).to(dtype)], dim=1).flatten()
    return torch.nn.functional.pad(x.view(torch.int16), (0, -len(x) % 64)).view(dtype).view(-1, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "e5m2", "e4m3fn", "e4m3fnuz", "int8", "posit8_1"])
def test_the_code_of_every_nan(name, dtype):
    """One code with the sign of the NaN, where the format has two; every bit of it where the format is its own.

    A GPU drops the sign of a float16 NaN as it makes it float32, in the definition and in kernels alike.
    """
    x, fmt = every_nan(dtype), nc.format(name)
    assert not difference(cast(name), x)
    codes, nan = codes_of(narrow_by(cast(name), x.to(DEVICE))), x.isnan()
    if dtype == getattr(torch, name, None):
        assert torch.equal(codes.cpu().short(), x.view(torch.int16))
    elif isinstance(fmt, Minifloat):
        sign = 0 if name.endswith("fnuz") else 1 << (fmt.bits - 1)
        negative = x.to(DEVICE).float().cpu()[nan].signbit() if dtype == torch.float16 else x[nan].signbit()
        expected = torch.where(negative, fmt.nan_code | sign, fmt.nan_code).long()
        assert torch.equal(codes.cpu()[nan].long() & ((1 << fmt.bits) - 1), expected)


def codes_of(q: QTensor) -> torch.Tensor:
    return unpack(q.codes, q.cast.format.bits, q.padded[-1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["e4m3fn", "int8", "ue5m3", "posit8_1"])
def test_every_rounding(name, mode):
    fmt = nc.format(name)
    assert not difference(Cast(fmt, rounding=roundings()[mode]), corners(fmt))


def test_no_preset_lost_its_kernel():
    """A new field of a scale or a rounding is refused until a kernel knows it; then this fails."""
    known = [s for s in nc.PRESETS if isinstance(cast(s).format, KINDS)]
    assert not [(s, reason(cast(s))) for s in known if reason(cast(s))]
    assert len(WITH_KERNEL) > 45


RULES = [
    "fp32",
    "fp32-headroom3",
    "e8m0-headroom2",
    "e8m0-ceil",
    "e8m0-ceil-exponent",
    "e8m0-even",
    "e8m0-nearest",
    "e8m0-four-thirds",
    "e4m3fn",
    "ue5m3",
]


@pytest.mark.parametrize("rule", [*RULES, "bfloat16", "e4m3fn+fp32"])
def test_every_scale_rule_over_the_whole_range_of_maxima(rule):
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    x = (x.double() * torch.exp2(torch.linspace(-150, 127, 64, dtype=torch.float64))[:, None]).float()
    x[5], x[6, 1:], x[7] = 0.0, 0.0, x[7].sign() * 3.0e38
    rows = x[:48] if rule == "e4m3fn+fp32" else x  # there the tensor's maximum decides too
    assert not difference(cast(f"e2m1fn/1x32/{rule}"), rows)
    assert not difference(cast(f"int4/1x16/{rule}"), rows)


SHAPES = {
    "e4m3fn/row/fp32/stochastic": ((5, 37), torch.bfloat16),  # no row starts on a word or on a counter
    "int3/row/fp32": ((3, 50), torch.float16),
    "e2m3fn/1x32+pad/e8m0": ((7, 70), torch.float16),
    "e4m3fn/8x16+pad/fp32": ((2, 3, 10, 20), torch.bfloat16),  # each matrix of the batch is padded by itself
    "e2m1fn/1x16/e4m3fn+fp32": ((3, 5, 48), torch.bfloat16),
    "int5/1x96/e8m0": ((2, 192), torch.float32),
    "int8/1x24/fp32": ((3, 48), torch.bfloat16),  # tiles of three groups
    "e2m1fn/4x2/fp32": ((8, 64), torch.bfloat16),  # many tiles in a group
    "e2m1fn/1x32/e8m0/nearest-even/hadamard128-fresh": ((2, 256), torch.float16),
    "e2m1fn/16x16/e8m0/nearest-even/hadamard64": ((16, 64), torch.float32),
    "e2m1fn/1x4/e8m0/stochastic/hadamard2-fresh": ((4, 64), torch.float32),
    "e4m3fn/tensor/fp32": ((6, 33), torch.float16),
    "bfloat16": ((9, 31), torch.float32),
    "int4": ((11,), torch.float32),
}


@pytest.mark.parametrize("spelling", SHAPES)
def test_odd_shapes(spelling):
    shape, dtype = SHAPES[spelling]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert not difference(cast(spelling), x)


def test_long_rows_take_their_maxima_from_a_pass_of_their_own(monkeypatch):
    monkeypatch.setattr(launch, "MAX_TILE", 64)
    x = poisoned(source(4, 128))
    assert launch.given(cast("int8/row/fp32"), 128) == "row"
    assert not difference(cast("int8/row/fp32"), x)


def test_strides_and_offsets():
    narrow, x = cast("mxfp4"), source(64, 64).bfloat16()
    assert not difference(narrow, x.T)
    assert not difference(narrow, x.flatten()[1:-31].view(-1, 32))  # not aligned to a word
    assert not difference(narrow, torch.empty(0, 32))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it loads its compiler
def test_compiled_whole():
    names = [
        "e2m1fn/1x16/e4m3fn+fp32/stochastic/hadamard16-fresh",
        "e4m3fn/1x32/e8m0-ceil",
        "e4m3fn/tensor/fp32-delayed4",
    ]
    casts, x, step = [cast(name) for name in names], source(8, 64).to(DEVICE), torch.tensor(2, device=DEVICE)
    history = Delayed(4).new(x.device)

    def run(x, step, history):
        found = []
        for narrow in casts:
            q = quantize(narrow, x * 2.0, replace(STREAM, step=step), history if narrow.scale.delayed else None)
            found += [q.codes, q.scales, q.dequantize()]
        return found

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="inductor" if DEVICE == "cuda" else "aot_eager")
    expected = []
    for narrow in casts:
        q = narrow.quantize(x * 2.0, STREAM, history.clone() if narrow.scale.delayed else None)
        expected += [q.codes, q.scales, q.dequantize()]
    found = compiled(x, step, history)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_operators_have_honest_fakes():
    x = source(8, 64).to(DEVICE)
    arguments = (x, "nvfp4", [8, 64], None, x.abs().max()[None], 5, 1, 2, None)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.narrowcast.quantize.default, arguments, test_utils=checks)
    torch.library.opcheck(
        torch.ops.narrowcast.amax.default, (x, "nvfp4", [8, 64], False, 5, 1, 2, None), test_utils=checks
    )


def test_the_door_takes_the_kernel_and_says_so():
    x = source(8, 64).to(DEVICE)
    assert choose_quantize("auto", cast("mxfp4"), x).backend == "native"
    q = nc.quantize(x.T, "mxfp8", axis=0, seed=1)
    assert not same(q, nc.quantize(x.T, "mxfp8", axis=0, seed=1, backend="emulate"))
    assert q.axis == 0 and os.environ.get("TRITON_INTERPRET") == ("1" if DEVICE == "cpu" else None)


@pytest.mark.parametrize("spelling", ["e4m3fn/tensor/fp32-delayed4", "e5m2/tensor/fp32-delayed4/stochastic"])
def test_what_lies_beyond_a_history_saturates(spelling):
    narrow = cast(spelling)
    x = torch.randn(16, 64, device=DEVICE)
    history = narrow.scale.delayed.new(x.device)
    history[1] = x.abs().amax() / 3
    found = quantize(narrow, x.bfloat16(), STREAM, history.clone())
    assert not same(found, narrow.quantize(x.bfloat16(), STREAM, history.clone()))
    assert found.dequantize().abs().amax() < x.abs().amax() / 2


@pytest.mark.parametrize("shape", [(24, 1), (5, 3), (2, 7, 6)])
def test_rows_shorter_than_a_threads_group(shape):
    assert not difference(cast("e4m3fn/row/fp32"), torch.randn(shape).bfloat16())

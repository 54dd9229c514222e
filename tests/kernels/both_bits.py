"""Both orientations in one pass, alone and fused, against the definition, bit for bit: as `bits.py`, in its own process."""

import pytest
import torch
from tests.kernels.bits import DEVICE, STREAM, poisoned, same

from narrowcast import passes as plain
from narrowcast.formats import Stream
from narrowcast.kernels import passes as fast
from narrowcast.kernels.native import quantize
from narrowcast.kernels.plan import plan
from narrowcast.nn.context import Context
from narrowcast.nn.native import Plans
from narrowcast.nn.normed import Unit, _Normed
from narrowcast.quantize import QTensor, cast
from narrowcast.recipes import recipe
from narrowcast.scaling import Delayed

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, in the interpreter
ACROSS = Stream(9, 4, 1)
T, S, R, X = "e4m3fn/1x128+pad/fp32", "e4m3fn/128x128+pad/fp32", "e4m3fn/row/fp32", "e5m2/tensor/fp32"
CASTS = [
    (T, T, (130, 72), torch.bfloat16),
    (S, "", (70, 136), torch.bfloat16),
    (S, S, (30, 48), torch.bfloat16),  # the same codes again
    (R, R, (34, 50), torch.float16),  # rows of the transpose do not start on a word
    ("e4m3fn/tensor/fp32", "", (40, 136), torch.float32),
    (X, "e4m3fn/tensor/fp32", (64, 100), torch.bfloat16),
    ("e4m3fn", "", (64, 128), torch.float32),
    ("e5m2", "int8/row/fp32", (64, 128), torch.bfloat16),
    ("mxfp8_e4m3", "mxfp8_e5m2", (160, 64), torch.bfloat16),
    ("e4m3/1x32/fp32/up", "int8/1x128/fp32/stochastic", (128, 64), torch.float32),
    ("e5m2/tensor/fp32/stochastic", "", (64, 128), torch.bfloat16),  # nothing is rounded twice
    ("e5m2/1x64/e8m0-ceil/stochastic", "e4m3fn/1x32/bfloat16/stochastic", (64, 64), torch.bfloat16),
    ("int8/32x32/e8m0", "", (64, 96), torch.float16),
]


def source(shape: tuple[int, int], seed: int = 0, spread: int = 6) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=g) * torch.exp2(
        torch.randint(-spread, spread + 1, (shape[0], 1), generator=g).float()
    )
    x[1], x[2, 3] = 0.0, -0.0
    return x


def parts(found: object) -> list[torch.Tensor]:
    """Every tensor of a result."""
    if isinstance(found, QTensor):
        return [found.codes, found.scales]
    return [found] if isinstance(found, torch.Tensor) else [t for part in found for t in parts(part)]  # type: ignore[attr-defined]


def differences(name: str, *arguments: object, **how: object) -> list[str]:
    """Where a function of kernels differs from its plain twin."""
    expected, found = (parts(getattr(module, name)(*arguments, **how)) for module in (plain, fast))
    differ = []
    for i, (a, b) in enumerate(zip(expected, found, strict=True)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), i
        wrong = ((a != b) & ~(a.isnan() & b.isnan())).nonzero()
        if len(wrong):
            at = tuple(wrong[0].tolist())
            differ.append(f"part {i}: {len(wrong)} differ, first {b[at]} instead of {a[at]} at {at}")
    return differ


def arguments(first: str, second: str) -> tuple[object, object]:
    return cast(first), cast(second) if second else None


@pytest.mark.parametrize(("first", "second", "shape", "dtype"), CASTS)
def test_both_orientations(first, second, shape, dtype):
    x = source(shape).to(dtype).to(DEVICE)
    how = {"stream": STREAM, "across_stream": ACROSS}
    assert not differences("quantize_both", x, *arguments(first, second), **how)
    if cast(first).scale.bits:  # an unscaled NaN keeps its sign, which differs by processor
        assert not differences("quantize_both", poisoned(x), *arguments(first, second), **how)


@pytest.mark.parametrize("casts", [(X, ""), (R, R), (T, T), (S, ""), ("e4m3fn", "")])
@pytest.mark.parametrize("rows", [128, 20])
def test_one_matrix_above_another(casts, rows):
    x, y = (source((rows, 136), seed).bfloat16().to(DEVICE) for seed in (0, 1))
    assert not differences("stacked_both", x, y, *arguments(*casts))


def test_a_history_is_kept_and_scales_in_the_same_pass():
    narrow, x = cast("e4m3fn/tensor/fp32-delayed4"), source((72, 100)).to(DEVICE)
    histories = [Delayed(4).new(x.device) for _ in "ab"]
    for past, y in ((0.0, x), (0.5, x), (0.5, poisoned(x))):  # empty; with a smaller maximum in it; not finite
        for history in histories:
            history[2] = past
        expected, found = (
            parts(m.quantize_both(y, narrow, history=h)) for m, h in zip((plain, fast), histories, strict=True)
        )
        assert all(torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0)) for a, b in zip(expected, found, strict=True))
        assert torch.equal(*histories)


def test_one_orientation_saturates_too_where_the_history_is_too_small():
    narrow, x, history = cast("e4m3fn/tensor/fp32-delayed4"), source((16, 64)).to(DEVICE), Delayed(4).new(DEVICE)
    history[1] = 0.5
    expected = narrow.quantize(x, None, history.clone())
    assert not same(quantize(narrow, x, None, history), expected)


@pytest.mark.parametrize(("first", "second"), [(T, T), (X, "")])
def test_fused_with_what_makes_the_tensor(first, second):
    casts, dtype = arguments(first, second), torch.bfloat16 if first == T else torch.float32
    x, delta, g = (source((12, 104), seed, 2).to(dtype).to(DEVICE) for seed in range(3))
    weight, inverse = source((3, 104), 4, 1)[0].to(DEVICE), plain.rms_norm(x, delta[0], 1e-6)[1]
    scale = plain.smooth_scale(delta)
    assert torch.equal(scale, fast.smooth_scale(delta))
    assert not differences("rms_norm_both", x, weight.to(dtype), 1e-6, *casts)
    assert not differences("add_rms_norm_both", x, delta, weight, 1e-5, *casts)
    assert not differences("rms_norm_backward_both", g, x, weight, inverse, delta, *casts)
    assert not differences("swiglu_both", x, delta, *casts)
    assert not differences("swiglu_both", x, delta, *casts, scale=scale)
    assert not differences("gelu_both", x, *casts)
    assert not differences("gelu_backward_both", g, x, *casts)


@pytest.mark.parametrize(("first", "second"), [(S, ""), (R, R)])
def test_gradients_of_a_gate_lie_side_by_side(first, second):
    halves = source((16, 256), 1, 2).bfloat16().to(DEVICE)
    g, gate, up = source((16, 128), 2, 2).bfloat16().to(DEVICE), halves[:, :128], halves[:, 128:]  # views with a stride
    assert not differences("swiglu_backward_both", g, gate, up, *arguments(first, second))
    scale = plain.smooth_scale(up)
    assert not differences("swiglu_backward_both", g, gate, up, *arguments(first, second), scale=scale)


@pytest.mark.parametrize("rows", [1, 33, 70])
def test_gradient_of_a_norm(rows):
    x, g = source((max(rows, 3), 72), 5)[:rows].to(DEVICE), source((max(rows, 3), 72), 6)[:rows].to(DEVICE)
    weight, inverse = g[0], plain.rms_norm(x, g[0], 1e-6)[1]
    assert not differences("rms_norm_backward", g, x, weight, inverse)


def test_empty_and_higher_ranks():
    x = source((64, 64)).to(DEVICE)
    assert not differences("quantize_both", torch.empty(0, 128, device=DEVICE), cast(R), cast(R))
    assert not differences("quantize_both", x.view(2, 32, 64), cast(X), None)
    assert not differences("quantize_both", x.T, cast(R), cast(R))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it loads its compiler
def test_compiled_whole():
    x, weight = source((32, 64)).bfloat16().to(DEVICE), torch.ones(64, device=DEVICE)
    narrow, history = cast("e4m3fn/tensor/fp32-delayed4"), Delayed(4).new(DEVICE)
    row, square, whole = cast(R), cast("e4m3fn/32x32/fp32"), cast("e4m3fn/tensor/fp32")

    def run(module, x, history):
        (first, second), inverse = module.rms_norm_both(x, weight, 1e-6, row, row)
        third, fourth = module.swiglu_both(x, x, narrow, history=history)
        gated = torch.nn.functional.silu(x) * x  # its maximum is the compiler's to find
        found = (first, second, third, fourth, *module.quantize_both(x, square), *module.quantize_both(gated, whole))
        return [inverse, gated, *(t for q in found for t in (q.codes, q.scales))]

    torch.compiler.reset()
    expected = run(plain, x, history.clone())
    compiled = torch.compile(run, fullgraph=True, backend="inductor" if DEVICE == "cuda" else "aot_eager")
    found = compiled(fast, x, history)
    again = plain.quantize_both(found[1], whole)  # compiled, the gate itself is rounded less often
    expected[1], expected[-4:] = found[1], [t for q in again for t in (q.codes, q.scales)]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert history[0] > 0


def test_operators_have_honest_fakes():
    x = source((32, 64)).to(DEVICE)
    bits, checks = (0, 0, 0, None), ("test_schema", "test_faketensor")
    nothing = (None, None, None, None, "plain")
    ops = torch.ops.narrowcast
    amax = x.abs().max()[None]
    torch.library.opcheck(ops.both.default, (x, *nothing, X, "", amax, None, *bits, *bits), test_utils=checks)
    delayed = (x, *nothing, "e4m3fn/tensor/fp32-delayed4", Delayed(4).new(DEVICE), *bits)
    torch.library.opcheck(ops.both_delayed.default, delayed, test_utils=checks)
    torch.library.opcheck(ops.row_and_column_amax.default, (x, *nothing), test_utils=checks)
    torch.library.opcheck(ops.inverse_rms.default, (x, x, 1e-5), test_utils=checks)
    torch.library.opcheck(ops.rms_norm_backward.default, (x, x, x[0], x[:, :1], None), test_utils=checks)


@pytest.mark.parametrize("name", ["fp8-block"])
def test_norm_and_gated_unit_in_one_by_kernels(name):
    """The gemms sum in another order than the emulation's; every operand is its twin bit for bit."""
    spec = recipe(name).linear
    plans = Plans(*(plan(spec.resolved(gemm)) for gemm in ("fwd", "dgrad", "wgrad")))
    g = torch.Generator().manual_seed(3)
    shapes = ((16, 128), (128,), (128, 128), (128, 128), (128, 128))
    layers = tuple(Context(site, 0, 0, None, None) for site in ("gate", "down"))
    results = []
    for how in (Plans(), plans):
        g.manual_seed(3)
        arguments = [torch.randn(s, generator=g).to(DEVICE).requires_grad_() for s in shapes]
        y = _Normed.apply(*arguments, Unit(spec, 1e-6, how), torch.float32, layers)
        y.sin().sum().backward()
        results.append([y, *(t.grad for t in arguments)])
    for a, b in zip(*results, strict=True):
        assert (a - b).norm() <= 2e-2 * a.norm()  # a few codes of the gradients, where sums before them differ

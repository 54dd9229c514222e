"""The three gemms of a linear layer, under every recipe."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import narrowcast as nc
from narrowcast.errors import InputError
from narrowcast.nn import OPERANDS, Linear, LinearSpec, operands
from narrowcast.ops import REUSE, WIDE, Gemm, Reuse
from narrowcast.quantize import cast

NARROW = [name for name, r in nc.recipes().items() if r.linear is not None]
IDENTITY = LinearSpec(Gemm(WIDE, WIDE), Gemm(WIDE, WIDE), Gemm(WIDE, WIDE))


def make(spec: LinearSpec, k: int = 64, n: int = 96, bias: bool = True, seed: int = 0) -> tuple[nn.Linear, Linear]:
    torch.manual_seed(seed)
    plain = nn.Linear(k, n, bias=bias)
    return plain, Linear(copy.deepcopy(plain), spec, "layer", seed)


def run(layer: nn.Module, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(g)
    return [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_identity_casts_pass_gradcheck_in_float64():
    _, layer = make(IDENTITY, 5, 3)
    layer.double()
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("recipe", NARROW)
def test_three_gemms_equal_float64_products_of_their_operands(recipe):
    """What the layer returns is what float64 gives for the six operands it shows, to float32's accumulation error."""
    spec = nc.recipe(recipe).linear
    _, layer = make(spec, bias=False)
    x, g = torch.randn(64, 64), torch.randn(64, 96)
    ops = {k: v.result.double() for k, v in operands(layer, x, layer.weight.detach(), g).items()}
    y, dx, dw = run(layer, x, g)
    exact = {
        "fwd": (y, ops["fwd.x"] @ ops["fwd.w"].mT, spec.fwd.out),
        "dgrad": (dx, ops["dgrad.g"] @ ops["dgrad.w"].mT, spec.dgrad.out),
        "wgrad": (dw, ops["wgrad.g"] @ ops["wgrad.x"].mT, spec.wgrad.out),
    }
    for name, (found, want, out) in exact.items():
        half_ulp = 0.0 if out is None else 2.0 ** -(out.precision + 1)
        bound = half_ulp * want.abs() + 1e-5 * want.abs().max() + 1e-12
        assert ((found[:, : want.shape[1]].double() - want).abs() <= bound).all(), name


@pytest.mark.parametrize("recipe", NARROW)
def test_gradients_stay_close_to_the_wide_ones(recipe):
    plain, layer = make(nc.recipe(recipe).linear, 128, 128)
    x, g = torch.randn(256, 128), torch.randn(256, 128)
    bits = nc.recipe(recipe).linear.cast("wgrad.x").format.bits
    limit = {16: 0.02, 8: 0.09, 4: 0.35}[bits]
    for found, want in zip(run(layer, x, g), run(plain, x, g), strict=True):
        assert relative(found, want) < limit


@pytest.mark.parametrize("recipe", NARROW)
@pytest.mark.parametrize("lead", [(0,), (32,), (2, 64), (2, 2, 32)])
def test_leading_dimensions_and_empty_batches(recipe, lead):
    _, layer = make(nc.recipe(recipe).linear)
    x = torch.randn(*lead, 64, requires_grad=True)
    y = layer(x)
    assert y.shape == (*lead, 96)
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("recipe", NARROW)
def test_non_contiguous_input_gives_the_same_bits(recipe):
    spec = nc.recipe(recipe).linear
    x, g = torch.randn(64, 32).mT, torch.randn(96, 32).mT
    (_, one), (_, two) = make(spec), make(spec)
    for a, b in zip(run(one, x.contiguous(), g.contiguous()), run(two, x, g), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recipe", NARROW)
def test_activation_checkpointing_changes_nothing(recipe):
    spec = nc.recipe(recipe).linear
    (_, one), (_, two) = make(spec), make(spec)
    x, g = torch.randn(64, 64), torch.randn(64, 96)
    for _ in range(3):  # several steps, so that random streams and histories have moved on
        plain = run(one, x, g)
        again = run(_Checkpointed(two), x, g)
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    for a, b in zip(one.buffers(), two.buffers(), strict=True):
        assert torch.equal(a, b)


class _Checkpointed(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint(self.layer, x, use_reentrant=False)


@pytest.mark.parametrize("recipe", ["bf16", "fp8-rowwise", "nvfp4"])
def test_gradients_accumulate(recipe):
    _, layer = make(nc.recipe(recipe).linear)
    x, g = torch.randn(64, 64), torch.randn(64, 96)
    start = copy.deepcopy(layer)
    first, second = run(layer, x, g)[2], run(layer, x, g)[2]
    for _ in range(2):
        start(x).backward(g)
    torch.testing.assert_close(start.weight.grad, first + second)


@pytest.mark.parametrize("recipe", ["bf16", "fp8-rowwise", "mxfp4"])
def test_autocast_sets_the_output_dtype_and_casts_from_the_wide_source(recipe):
    _, layer = make(nc.recipe(recipe).linear)
    x = torch.randn(32, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, layer(x).to(torch.bfloat16))
    y.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


# Torch's own: Dynamo instantiates autograd.Function while tracing, and loads torch.jit with its compiler.
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    ("recipe", "backend"),
    [("fp8-delayed", "inductor"), ("fp8-rowwise", "aot_eager"), ("nvfp4", "aot_eager"), ("mxfp4-rht-sr", "aot_eager")],
)
def test_compiles_whole_and_gives_the_same_operands(recipe, backend):
    """fullgraph: no break. Codes are bit-equal; only the order of float32 sums may differ.

    One recipe goes all the way to machine code, as every kind of cast does in the contract of casts; the others stop at
    the traced graph, forward and backward, which costs a tenth (mxfp4-rht-sr: 41 s of C++ for its butterflies).
    """
    torch._dynamo.reset()
    spec = nc.recipe(recipe).linear
    (_, eager), (_, other) = make(spec), make(spec)
    compiled = torch.compile(other, fullgraph=True, backend=backend)
    x, g = torch.randn(64, 64), torch.randn(64, 96)
    for _ in range(2):
        for a, b in zip(run(eager, x, g), run(compiled, x, g), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
    for a, b in zip(eager.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)


def test_ragged_sizes_are_padded_or_refused_by_name():
    refused = LinearSpec(Gemm(cast("mxfp8"), cast("mxfp8")), Gemm(WIDE, WIDE), Gemm(WIDE, WIDE))
    _, layer = make(refused, 40, 24)
    with pytest.raises(InputError, match=r"layer 'layer', operand fwd.x of shape \(8, 40\).*multiple of 32"):
        layer(torch.randn(8, 40))
    _, padded = make(nc.recipe("mxfp8").linear, 40, 24)
    plain, _ = make(IDENTITY, 40, 24)
    x, g = torch.randn(7, 40), torch.randn(7, 24)
    for found, want in zip(run(padded, x, g), run(plain, x, g), strict=True):
        assert found.shape == want.shape
        assert relative(found, want) < 0.09


def test_a_shared_transform_cancels_in_the_product():
    rotation = nc.Hadamard(16, signs="fresh")
    spec = LinearSpec(*(Gemm(WIDE, WIDE, transform=rotation) for _ in range(3)))
    plain, layer = make(spec)
    x, g = torch.randn(32, 64), torch.randn(32, 96)
    for found, want in zip(run(layer, x, g), run(plain, x, g), strict=True):
        assert relative(found, want) < 1e-6


def test_random_bits_move_on_with_every_backward_pass():
    _, layer = make(nc.recipe("mxfp4-rht-sr").linear)
    x, g = torch.randn(64, 64), torch.randn(64, 96)
    first, second = run(layer, x, g)[2], run(layer, x, g)[2]
    assert not torch.equal(first, second)
    layer.step.zero_()
    assert torch.equal(run(layer, x, g)[2], first)


def test_delayed_scaling_uses_the_finished_steps():
    _, layer = make(nc.recipe("fp8-delayed").linear)
    g = torch.randn(32, 96)
    x = torch.randn(32, 64)
    run(layer, x, g)
    assert layer.history[OPERANDS.index("fwd.x"), 1] == x.abs().max()
    run(layer, 4 * x, g)  # scaled by the old maximum: the large values saturate there
    seen = operands(layer, 8 * x, layer.weight.detach(), g)["fwd.x"].result
    assert seen.abs().max() <= 4 * x.abs().max() * (1 + 1e-6)


@pytest.mark.parametrize("recipe", NARROW)
def test_non_finite_values_are_never_hidden(recipe):
    clips = nc.recipe(recipe).linear.fwd.a == cast(
        "e4m3fn"
    )  # without a scale an infinity is clipped, as its paper says
    for bad in (float("nan"),) if clips else (float("nan"), float("inf")):
        _, layer = make(nc.recipe(recipe).linear)
        x = torch.randn(64, 64)
        x[3, 5] = bad
        assert not layer(x)[3].isfinite().any()


def test_reuse_takes_the_first_casts_codes():
    spec = nc.recipe("fp8-tensorwise").linear
    _, layer = make(spec)
    ops = operands(layer, torch.randn(32, 64), layer.weight.detach(), torch.randn(32, 96))
    assert torch.equal(ops["dgrad.w"].result, ops["fwd.w"].result.mT)
    assert torch.equal(ops["wgrad.x"].result, ops["fwd.x"].result.mT)
    assert ops["wgrad.g"].reused
    twice = Reuse(cast("e4m3fn/1x32/fp32"))
    again = LinearSpec(spec.fwd, spec.dgrad, Gemm(REUSE, twice))
    _, layer = make(again)
    ops = operands(layer, torch.randn(32, 64), layer.weight.detach(), torch.randn(32, 96))
    assert torch.equal(ops["wgrad.x"].result, twice.then.apply(ops["fwd.x"].result.mT))


@pytest.mark.parametrize(("narrow", "sums"), [("tensor", "hopper-fp8"), ("32x32+pad", "hopper-fp8/every32/fp32")])
def test_accumulators_on_codes_get_those_that_are_reused(narrow, sums):
    """The codes of a square or a whole tensor are those of a second cast of the transpose; M is padded to 64."""
    x, g = (cast(f"{name}/{narrow}/fp32") for name in ("e4m3fn", "e5m2"))
    results = []
    for second, third, fourth in ((REUSE, REUSE, REUSE), (x, g, x)):
        gemms = (Gemm(a, b, accumulator=nc.accumulator(sums)) for a, b in ((x, x), (g, second), (third, fourth)))
        _, layer = make(LinearSpec(*gemms))
        results.append(run(layer, torch.randn(40, 64), torch.randn(40, 96)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_random_codes_are_reused_by_accumulators_on_codes_too():
    _, layer = make(nc.recipe("fp8-smooth-swiglu@hopper-fp8").linear)
    ops = operands(layer, torch.randn(32, 64), layer.weight.detach(), torch.randn(32, 96))
    for second, first in (("dgrad.w", "fwd.w"), ("wgrad.g", "dgrad.g"), ("wgrad.x", "fwd.x")):
        assert torch.equal(ops[second].result, ops[first].result.mT)


def test_specs_that_cannot_work_are_refused():
    fp8 = cast("e4m3fn/row/fp32")
    with pytest.raises(InputError, match=r"fwd\.x cannot reuse"):
        LinearSpec(Gemm(REUSE, fp8), Gemm(fp8, fp8), Gemm(fp8, fp8))
    with pytest.raises(InputError, match="wide sources"):
        Gemm(fp8, REUSE, transform=nc.Hadamard(16))
    with pytest.raises(InputError, match="rotated"):
        LinearSpec(Gemm(fp8, fp8, transform=nc.Hadamard(16)), Gemm(fp8, REUSE), Gemm(fp8, fp8))


def test_saved_bits_follow_the_spec():
    shape = (256, 128)
    assert nc.recipe("bf16").linear.saved_bits("x", shape) == 16
    assert nc.recipe("fp8-tensorwise").linear.saved_bits("x", shape) == 8 + 32 / (256 * 128)
    assert nc.recipe("int8-block").linear.saved_bits("x", shape) == 8 + 32 / 1024
    assert IDENTITY.saved_bits("x", shape) == 32


@pytest.mark.parametrize("recipe", NARROW)
def test_operands_leave_the_layer_as_it_was(recipe):
    _, layer = make(nc.recipe(recipe).linear)
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    found = operands(layer, torch.randn(32, 64), layer.weight.detach(), torch.randn(32, 96))
    assert tuple(found) == OPERANDS
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())

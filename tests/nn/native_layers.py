"""Layers on kernels against the emulation: run by `test_native` under TRITON_INTERPRET=1, or as it is on a GPU."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import narrowcast as nc
from narrowcast.analysis.kept import kept
from narrowcast.attend import attend
from narrowcast.backend import choose_gates, gates
from narrowcast.nn import Linear
from narrowcast.nn.remade import Remade

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: recipe, dtype; all of them on a GPU, a few in the interpreter
CASES = [("fp8-smooth-swiglu", torch.bfloat16), ("nvfp4", torch.float32)]
if DEVICE == "cuda":
    CASES = [(n, d) for n, r in nc.recipes().items() if r.linear for d in (torch.bfloat16, torch.float32)]
EQUAL = 2e-3  # a product rounded to bfloat16 may end one unit elsewhere; an operand that differs moves it by 1e-2


def pair(recipe: str, dtype: torch.dtype, k: int = 24, n: int = 40) -> tuple[Linear, Linear]:
    torch.manual_seed(1)
    plain, spec = nn.Linear(k, n, device=DEVICE, dtype=dtype), nc.recipe(recipe).linear
    return Linear(plain, spec, "l", 0, "emulate"), Linear(copy.deepcopy(plain), spec, "l", 0, "auto")


def run(layer: nn.Module, x: torch.Tensor, g: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().clone().requires_grad_()
    y = layer(x)
    y.backward(g)
    found = [y.detach(), x.grad, *(p.grad for p in layer.parameters())]
    layer.zero_grad()
    return found


def near(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    for found, want in zip(a, b, strict=True):
        assert found.dtype == want.dtype
        assert float((found.double() - want.double()).norm()) <= EQUAL * float(want.double().norm())


@pytest.mark.parametrize(("recipe", "dtype"), CASES, ids=str)
def test_native_gives_what_emulate_gives(recipe, dtype):
    """Sizes that no tile divides; two steps, so that histories and random streams have moved on."""
    emulated, native = pair(recipe, dtype)
    for scale in (1.0, 2.5)[: 2 if "delayed" in str(emulated.spec.fwd.a) else 1]:
        x, g = (
            scale * torch.randn(2, 17, 24, device=DEVICE, dtype=dtype),
            torch.randn(2, 17, 40, device=DEVICE).to(dtype),
        )
        near(run(native, x, g), run(emulated, x, g))
    for a, b in zip(native.buffers(), emulated.buffers(), strict=True):
        assert torch.equal(a, b)


def test_no_wide_activation_is_kept():
    _, layer = pair("fp8-tensorwise", torch.bfloat16)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(32, 24, device=DEVICE, dtype=torch.bfloat16, requires_grad=True))
    wide = [t for t in kept if t.dtype == torch.bfloat16 and t.shape != layer.weight.shape]
    assert not wide
    assert any(t.dtype == torch.uint8 and t.shape == (24, 32) for t in kept), "codes of x, transposed"


def test_checkpointing_accumulation_and_no_grad():
    class Wrapped(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(self.layer, x, use_reentrant=False)

    (_, one), (_, two) = (pair("fp8-smooth-swiglu", torch.bfloat16) for _ in "ab")
    x, g = torch.randn(32, 24, device=DEVICE).bfloat16(), torch.randn(32, 40, device=DEVICE).bfloat16()
    first = run(one, x, g)
    for a, b in zip(first, run(Wrapped(two), x, g), strict=True):
        assert torch.equal(a, b)
    _, fresh = pair("fp8-smooth-swiglu", torch.bfloat16)
    fresh(x).backward(g)
    fresh(x).backward(g)
    assert torch.equal(fresh.weight.grad, first[2] + run(one, x, g)[2])
    with torch.no_grad():
        assert one(x).grad_fn is None


def test_the_table_names_the_kernel_of_each_gemm():
    model = nn.Sequential(nn.Linear(32, 32, device=DEVICE))
    row = nc.convert(model, "fp8-tensorwise", backend="native").rows[0]
    assert row.backend == "native"
    assert row.gemms["fwd"]["kernel"] == "scaled_mm e4m3fn x e4m3fn, tensor scales, split accumulation"
    assert row.gemms["wgrad"]["kernel"].startswith("scaled_mm e5m2 x e4m3fn")


def test_a_batch_of_nothing_and_non_finite_inputs():
    emulated, native = pair("mxfp4", torch.bfloat16)
    assert native(torch.empty(0, 24, device=DEVICE, dtype=torch.bfloat16)).shape == (0, 40)
    x = torch.randn(32, 24, device=DEVICE, dtype=torch.bfloat16)
    x[3, 5], x[7, 1], x[9] = float("nan"), float("inf"), 0.0
    a, b = native(x), emulated(x)
    assert torch.equal(a.isnan(), b.isnan())
    assert torch.equal(a.nan_to_num(), b.nan_to_num())


class Unit(nn.Module):
    def __init__(self, hidden: int = 48) -> None:
        super().__init__()
        self.act_fn = nn.SiLU()
        self.gate_proj, self.up_proj = nn.Linear(32, hidden, bias=False), nn.Linear(32, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, 32, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Stack(nn.Module):
    """A norm and a gated unit, as a recipe's changes look for them."""

    def __init__(self, recipe: str | nc.Recipe, backend: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.norm, self.mlp = nn.RMSNorm(32, eps=1e-5), Unit()
        self.to(DEVICE, torch.bfloat16)
        nc.convert(self, recipe, backend=backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


def saving() -> dict[str, nc.Recipe]:
    """Return fp8-coat, and the same with every code kept that the backward pass needs."""
    coat = nc.recipe("fp8-coat")
    changes = tuple(c for c in coat.changes if not isinstance(c, Remade))
    assert coat.linear is not None
    return {"remade": coat, "kept": replace(coat, linear=replace(coat.linear, remade=()), changes=changes)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_gradients_of_gates_kept_as_codes_have_the_plain_bits(dtype):
    """All 256 codes, among them those of NaN, whose bits are the processor's affair."""
    gate, up, g = ((s * torch.randn(20, 64, device=DEVICE)).to(dtype) for s in (2.0, 3.0, 1e-2))
    kept_gate, kept_up = (nc.quantize(x, "e4m3fn/1x16+pad/bfloat16") for x in (gate, up))
    kept_gate.codes[:4] = torch.arange(256, dtype=torch.uint8, device=DEVICE).view(4, 64)
    assert choose_gates("auto", kept_gate, g, None).backend == "native"
    for found, want in zip(*(gates(b)(g, kept_gate, kept_up) for b in ("native", "emulate")), strict=True):
        assert torch.equal(found.isnan(), want.isnan())
        assert torch.equal(found.nan_to_num(), want.nan_to_num())


def test_what_is_remade_has_the_bits_of_what_is_kept():
    x, g = (torch.randn(1, 17, 32, device=DEVICE).bfloat16() for _ in "xg")
    found = {name: run(Stack(recipe, "native"), x, g) for name, recipe in saving().items()}
    for a, b in zip(found["remade"], found["kept"], strict=True):
        assert torch.equal(a, b)
    near(found["remade"], run(Stack("fp8-coat", "emulate"), x, g))


def test_activations_are_kept_in_fp8_and_weights_as_they_are():
    model, kept = Stack("fp8-coat", "native"), []
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(torch.randn(64, 32, device=DEVICE, dtype=torch.bfloat16, requires_grad=True))
    sizes = {t.untyped_storage().data_ptr(): t.nbytes for t in kept}
    groups = 64 * (32 + 48 + 48) * (8 + 1) // 8  # codes of the norm's input, of gate and of up; 16 share a scale of 16
    inputs = 64 * (32 + 32 + 48) + 3 * 4  # of the three layers, codes and a scale
    assert sum(n for p, n in sizes.items() if p not in own) == groups + inputs + 4 * 64  # and 1 / rms


def test_compiled_code_keeps_no_wide_activation():
    model = Stack("fp8-coat", "native")
    with FakeTensorMode(allow_non_fake_inputs=True):
        rows = kept(model, torch.empty(64, 32, device=DEVICE, dtype=torch.bfloat16))
    groups = sorted(row for row in ((r.dtype, r.bytes) for r in rows) if row[1] > 4 * 64)  # not 1 / rms, not one scale
    assert groups == [("int16", 2 * 64 * 48 // 16 * 2), ("uint8", 64 * 32), ("uint8", 2 * 64 * 48)]


def test_compiled_whole_remakes_the_same_bits():
    x, g = (torch.randn(1, 16, 32, device=DEVICE).bfloat16() for _ in "xg")
    compiled = torch.compile(Stack("fp8-coat", "native"), fullgraph=True, backend="aot_eager", dynamic=False)
    for a, b in zip(run(Stack("fp8-coat", "native"), x, g), run(compiled, x, g), strict=True):
        assert torch.equal(a, b)


class Attended(nn.Module):
    """Attention, and the layer behind it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.kind, self.o_proj = kind, nn.Linear(32, 32, bias=False, device=DEVICE, dtype=torch.bfloat16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = x.view(*x.shape[:2], 2, 16).transpose(1, 2)
        return self.o_proj(attend(q, q, q, kind=self.kind).transpose(1, 2).reshape(x.shape))


def attended(kind: str) -> nn.Module:
    model = nn.Sequential(Attended(kind))
    nc.convert(model, "fp8-coat", backend="native")
    return model


def test_output_of_attention_is_kept_once():
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 64, 32, device=DEVICE, dtype=torch.bfloat16)
        rows = kept(attended("flash4"), x.requires_grad_())
    assert [(r.dtype, r.shape) for r in rows if r.shape] == [
        ("bfloat16", (2, 64, 2, 16)),
        ("float32", (2, 2, 64)),
    ]


def test_codes_of_the_output_of_attention_are_remade_with_the_same_bits():
    x, g = (torch.randn(1, 16, 32, device=DEVICE).bfloat16() for _ in "xg")
    compiled = torch.compile(attended("torch"), fullgraph=True, backend="aot_eager", dynamic=False)
    for a, b in zip(run(attended("torch"), x, g), run(compiled, x, g), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("recipe", ["fp8-tensorwise"] if DEVICE == "cpu" else [r for r, _ in CASES[::2]])
def test_compiled_whole_gives_the_same_bits(recipe):
    """No graph break; and the gradient arrives, which it did not under torch 2.11 (see `nn.context.in_dtype`)."""
    (_, layer), (_, other) = (pair(recipe, torch.bfloat16) for _ in "ab")
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager", dynamic=False)
    x, g = torch.randn(32, 24, device=DEVICE).bfloat16(), torch.randn(32, 40, device=DEVICE).bfloat16()
    for a, b in zip(run(layer, x, g), run(compiled, x, g), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("recipe", ["fp8-tensorwise"] if DEVICE == "cpu" else [r for r, _ in CASES[::2]])
def test_compiled_under_autocast_gives_the_same_bits(recipe):
    """As `narrowcast train --compile` runs on a GPU: float32 weights, bfloat16 by autocast, off in the backward pass."""
    (_, layer), (_, other) = (pair(recipe, torch.float32) for _ in "ab")
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager", dynamic=False)
    x, g = torch.randn(32, 24, device=DEVICE), torch.randn(32, 40, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        found, want = run(compiled, x, g.bfloat16()), run(layer, x, g.bfloat16())
    for a, b in zip(want, found, strict=True):
        assert torch.equal(a, b)


class Block(nn.Module):
    """Norms and what they feed, under Llama's names."""

    def __init__(self, recipe: str, backend: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.input_layernorm, self.post_attention_layernorm = (nn.RMSNorm(32, eps=1e-5) for _ in "ip")
        self.self_attn, self.mlp = nn.Module(), Unit(128)
        for part, size in (("q_proj", 32), ("k_proj", 16), ("v_proj", 16)):
            setattr(self.self_attn, part, nn.Linear(32, size, bias=part == "v_proj"))
        self.to(DEVICE, torch.bfloat16)
        nc.convert(nn.Sequential(self), f"{recipe}+joined", backend=backend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.input_layernorm(x)
        q, k, v = (getattr(self.self_attn, f"{part}_proj")(normed) for part in "qkv")
        x = x + q * torch.cat([k, v], -1)
        return x + self.mlp(self.post_attention_layernorm(x))


JOINED = ["fp8-smooth-swiglu"]
if DEVICE == "cuda":
    JOINED = [
        "fp8-tensorwise",
        "fp8-delayed",
        "fp8-smooth-swiglu",
        "fp8-rowwise@hopper-fp8",
        "fp8-block",
        "fp8-hybrid",
        "fp8-static",
    ]


@pytest.mark.parametrize("recipe", JOINED)
def test_joined_blocks_do_what_emulated_ones_do_and_compiled_the_same_bits(recipe):
    """Two steps: histories and random bits have moved on, and nothing that was compiled is compiled again."""
    emulated, native, other = (Block(recipe, backend) for backend in ("emulate", "native", "native"))
    compiled = torch.compile(other, fullgraph=True, backend="aot_eager", dynamic=False)
    for scale in (1.0, 2.5):
        x, g = (scale * torch.randn(2, 16, 32, device=DEVICE).bfloat16() for _ in "xg")
        found = run(native, x, g)
        for a, b in zip(found, run(emulated, x, g), strict=True):
            assert float((a.double() - b.double()).norm()) <= 2e-2 * float(b.double().norm())
        with torch.compiler.set_stance("fail_on_recompile" if scale > 1 else "default"):
            for a, b in zip(found, run(compiled, x, g), strict=True):
                assert torch.equal(a, b)
    for a, b in zip(native.buffers(), other.buffers(), strict=True):
        assert torch.equal(a, b)

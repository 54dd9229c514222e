"""Attention kernels on a GPU: against float32 mathematics, repeating themselves, compiled, captured, checkpointed.

On a machine with a GPU: ``pytest tests/kernels/test_attention.py``. What cannot run there is skipped with its reason.
"""

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.utils.checkpoint import checkpoint

from narrowcast.attend import KERNELS, Setting, attend
from narrowcast.models import default_config, from_config
from narrowcast.place import Place

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's compiler, of torch's own functions
    pytest.mark.filterwarnings("ignore:TensorFloat32"),
]
KINDS = ("flash4", "cudnn", "flash", "efficient")
REPEATING = tuple(kind for kind in KINDS if KERNELS[kind].repeats)
BF16, FP16 = torch.bfloat16, torch.float16

#: batch, heads of queries, of keys, tokens, size of a head, dtype, causal
SHAPES = {
    "grouped": (2, 8, 2, 1024, 128, BF16, True),
    "not causal": (2, 8, 2, 1024, 128, BF16, False),
    "float16": (2, 8, 2, 512, 64, FP16, True),
    "odd length": (1, 4, 4, 1000, 128, BF16, True),
    "odd size": (2, 4, 1, 512, 96, BF16, True),
    "short": (2, 4, 2, 64, 128, BF16, True),
}


def drawn(batch, heads, keys, tokens, size, dtype, causal=True):
    """q, k, v as projections leave them, and the gradient of the output."""
    generator = torch.Generator("cuda").manual_seed(batch * tokens + heads)
    made = [
        torch.randn(batch, tokens, h, size, generator=generator, device="cuda").to(dtype).transpose(1, 2)
        for h in (heads, keys, keys, heads)
    ]
    return [t.requires_grad_() for t in made[:3]], made[3]


def able(kind, size=128, dtype=BF16, repeatable=False):
    """Skip where ``kind`` cannot run here."""
    reason = KERNELS[kind].against(Setting.on(torch.device("cuda"), dtype, size, repeatable))
    if reason is not None:
        pytest.skip(f"{kind}: {reason}")


def passes(run, inputs, g):
    out = run(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, g)]


def by(kind, causal=True):
    return lambda q, k, v: attend(q, k, v, causal=causal, kind=kind)


def distance(a, b):
    """NaN fails every comparison with it."""
    return float((a.float() - b.float()).norm() / b.float().norm())


def same(a, b):
    return [torch.equal(x, y) for x, y in zip(a, b, strict=True)] == [True] * len(a)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_output_and_gradients_are_those_of_float32(kind, shape):
    *_, size, dtype, causal = SHAPES[shape]
    able(kind, size, dtype)
    inputs, g = drawn(*SHAPES[shape])
    made = passes(by(kind, causal), inputs, g)
    expected = passes(by("math", causal), [t.detach().float().requires_grad_() for t in inputs], g.float())
    for ours, exact in zip(made, expected, strict=True):
        assert ours.dtype == dtype
        assert distance(ours, exact) < 1e-2


@pytest.mark.parametrize("kind", REPEATING)
def test_gradients_repeat_themselves_bit_for_bit(kind):
    able(kind, repeatable=True)
    inputs, g = drawn(4, 16, 4, 2048, 128, BF16)
    torch.use_deterministic_algorithms(True)
    try:
        first = passes(by(kind), inputs, g)
        assert all(same(first, passes(by(kind), inputs, g)) for _ in range(8))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_checkpointed_and_captured_give_the_same_numbers(kind):
    able(kind)
    inputs, g = drawn(*SHAPES["grouped"])
    torch.use_deterministic_algorithms(KERNELS[kind].repeats)
    try:
        expected = passes(by(kind), inputs, g)
        forms = [
            passes(torch.compile(by(kind), fullgraph=True), inputs, g),
            passes(lambda *tensors: checkpoint(by(kind), *tensors, use_reentrant=False), inputs, g),
            captured(kind, inputs, g),
        ]
    finally:
        torch.use_deterministic_algorithms(False)
    if KERNELS[kind].repeats:
        assert [same(expected, form) for form in forms] == [True] * 3
    exact = passes(by("math"), [t.detach().float().requires_grad_() for t in inputs], g.float())
    apart = [[distance(a, b) for a, b in zip(form, exact, strict=True)] for form in forms]
    assert all(d < 1e-2 for form in apart for d in form), f"compiled, checkpointed, captured: {apart}"


def captured(kind, inputs, g):
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        inputs = [t.detach().requires_grad_() for t in inputs]  # leaves that know no other stream
        passes(by(kind), inputs, g)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        made = passes(by(kind), inputs, g)
    for t in made:
        t.fill_(torch.nan)
    graph.replay()
    return made


@pytest.mark.parametrize("size", [8, 12, 64, 128, 160, 256, 264])
@pytest.mark.parametrize("repeatable", [False, True])
def test_torch_takes_its_kernels_where_the_table_says_so(size, repeatable):
    """The table may promise less than torch does (cuDNN's larger heads), and no more."""
    q, k, v = (torch.randn(1, 4, 64, size, device="cuda", dtype=BF16, requires_grad=True) for _ in "qkv")
    torch.use_deterministic_algorithms(repeatable)
    try:
        for kind in ("cudnn", "flash", "efficient"):
            if KERNELS[kind].against(Setting.on(q.device, BF16, size, repeatable)) is None:
                attend(q, k, v, kind=kind).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


def test_flash4_is_a_torch_operation_here_too():
    able("flash4")
    inputs, _ = drawn(1, 4, 2, 256, 128, BF16)
    tokens = [t.detach().transpose(1, 2).requires_grad_() for t in inputs]
    checks = (
        "test_schema",
        "test_faketensor",
        "test_autograd_registration",
    )  # the last one compares bits that may differ
    torch.library.opcheck(torch.ops.narrowcast.flash4, (*tokens, True, 0.1, True), test_utils=checks)


@pytest.mark.parametrize("compiles", [False, True])
def test_a_model_trains_by_it(compiles, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    config = default_config(96, 128)
    config.num_key_value_heads = 2
    model, tokens = from_config(config, 0).cuda(), torch.randint(96, (2, 128), device="cuda")
    place = Place.of("cuda", "bfloat16")
    runs = torch.compile(model, fullgraph=True) if compiles else model
    losses = []
    for used in (place, Place.of("cuda", "bfloat16", "math")):
        with used.repeatable(), used.attending(model, used.attention(model)), used.autocast():
            losses.append(float(runs(input_ids=tokens, labels=tokens, use_cache=False).loss.detach()))
    assert place.attention(model).kind != "math" and losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_every_backend_of_torch_has_a_row():
    named = {kernel.backend for kernel in KERNELS.values()}
    assert {
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    } <= named

"""Which kernel runs attention, and why; the numbers of those that a CPU has; the model's attention in training."""

import pytest
import torch
import torch.nn.functional as F

import narrowcast.cli as cli
from narrowcast import attend as door
from narrowcast.attend import ASKED, KERNELS, Setting, attend, choose_attention
from narrowcast.cli.common import AttentionOption
from narrowcast.errors import InputError
from narrowcast.kernels import flash4
from narrowcast.models import default_config, from_config
from narrowcast.place import Place
from narrowcast.train import TrainConfig, train
from tests import tiny

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
ABSENT = "flash-attn-4 is not installed; pip install narrowcast[hopper]"
HOPPER = Setting((9, 0), BF16, 128)

#: (setting, whether flash-attn-4 is installed): (what auto takes, words of what stands against those before it)
TABLE = {
    (HOPPER, True): ("flash4", {}),
    (HOPPER, False): ("cudnn", {"flash4": ABSENT}),
    (Setting((9, 0), FP16, 64), True): ("flash4", {}),
    (Setting((9, 0), BF16, 128, repeatable=True), True): ("flash4", {}),
    (Setting((9, 0), BF16, 128, repeatable=True), False): ("flash", {"flash4": ABSENT, "cudnn": "does not repeat itself"}),
    (Setting((9, 0), BF16, 256), True): ("flash", {"flash4": "up to 128, not 256", "cudnn": "up to 128"}),
    (Setting((9, 0), BF16, 12), True): ("math", {"flash4": "multiple of 8", "cudnn": "multiple of 8", "flash": "multiple of 8", "efficient": "multiple of 8"}),
    (Setting((9, 0), FP32, 128), True): ("efficient", {"flash4": "not float32", "cudnn": "bfloat16, float16, not float32", "flash": "not float32"}),
    (Setting((9, 0), torch.float64, 128), True): ("math", dict.fromkeys(("flash4", "cudnn", "flash", "efficient"), "not float64")),
    (Setting((9, 0), BF16, 128, masked=True), True): ("efficient", dict.fromkeys(("flash4", "cudnn", "flash"), "takes no mask")),
    (Setting((8, 0), BF16, 128), True): ("flash", {}),
    (Setting((10, 0), BF16, 128), True): ("flash", {}),
    (Setting((7, 5), FP16, 128), True): ("efficient", {"flash": "from sm_80, and this is sm_75"}),
    (Setting(None, FP32, 128), True): ("torch", {}),
}  # fmt: skip


@pytest.mark.parametrize(("setting", "installed"), TABLE)
def test_auto_takes_the_first_that_can_and_says_what_the_others_lack(setting, installed, monkeypatch):
    monkeypatch.setattr(flash4, "absent", lambda: None if installed else ABSENT)
    kind, words = TABLE[setting, installed]
    made = choose_attention("auto", setting)
    assert made.kind == kind
    assert {name: words[name] in reason for name, reason in made.against} == dict.fromkeys(words, True)
    assert str(made).startswith(f"{kind} ({KERNELS[kind].name}): ")
    measured = {"flash4", "cudnn"} & {kind, *words} or setting.capability is None
    assert ("none was measured" in made.why) != bool(measured) or setting.capability[0] == 9


@pytest.mark.parametrize(
    ("asked", "setting", "said"),
    [
        ("flash4", HOPPER, r"flash4 \(FlashAttention-4\) cannot run here: .*pip install narrowcast\[hopper\]"),
        ("flash4", Setting((8, 0), BF16, 128), "from sm_90, before sm_120, and this is sm_80"),
        ("cudnn", Setting((9, 0), BF16, 128, repeatable=True), "does not repeat itself bit for bit; or take 'auto'"),
        ("flash", Setting(None, BF16, 128), "flash .* cannot run here: it needs a CUDA device"),
        ("flash3", HOPPER, "unknown 'flash3'; nearest: flash"),
    ],
)
def test_what_cannot_run_is_refused(asked, setting, said, monkeypatch):
    monkeypatch.setattr(flash4, "absent", lambda: ABSENT)
    with pytest.raises(InputError, match=said):
        choose_attention(asked, setting)


def test_another_version_of_the_package_is_not_taken(monkeypatch):
    flash4.absent.cache_clear()
    monkeypatch.setattr(flash4, "version", lambda name: "4.0.0b5")
    assert flash4.absent() == f"flash-attn-4 is 4.0.0b5, expected {flash4.VERSION}; pip install narrowcast[hopper]"
    flash4.absent.cache_clear()
    monkeypatch.setattr(flash4, "version", lambda name: flash4.VERSION)
    assert flash4.absent() is None
    flash4.absent.cache_clear()


def drawn(keys=2, tokens=24, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(2, heads, tokens, 16, dtype=dtype, requires_grad=True) for heads in (4, keys, keys)]


def weights(q, k, causal, scale):
    scores = q @ k.mT * scale
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return scores.softmax(-1)


def repeated(q, *tensors):
    return (torch.repeat_interleave(t, q.shape[1] // t.shape[1], dim=1) for t in tensors)


def plain(q, k, v, causal, scale):
    """Attention as its definition says."""
    k, v = repeated(q, k, v)
    return weights(q, k, causal, scale) @ v


@pytest.mark.parametrize("kind", ["auto", "torch", "math"])
@pytest.mark.parametrize("causal", [True, False])
def test_the_numbers_on_a_cpu(kind, causal):
    q, k, v = drawn()
    assert torch.allclose(attend(q, k, v, causal=causal, scale=0.3, kind=kind), plain(q, k, v, causal, 0.3), rtol=1e-12)
    mask = torch.randn(24, 24, dtype=torch.float64)
    masked = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)
    assert torch.allclose(attend(q, k, v, causal=False, mask=mask, kind=kind), masked)


def test_autocast_casts_all_three():
    q, k, v = drawn(dtype=FP32)
    with torch.autocast("cpu", BF16):
        assert attend(q, k, v.bfloat16()).dtype == BF16


@pytest.mark.parametrize(
    ("sizes", "more", "said"),
    [
        (((2, 4, 8, 16), (2, 3, 8, 16)), {}, "4 heads of queries cannot share 3 of keys"),
        (((2, 4, 8, 16), (2, 4, 8, 8)), {}, r"expected q \[B, H, T, D\]"),
        (((2, 4, 8, 16), (2, 4, 9, 16)), {}, "found 8 and 9, no mask; pass causal=False"),
        (((2, 4, 8, 16), (2, 4, 8, 16)), {"mask": torch.zeros(8, 8)}, "a mask; pass causal=False"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(sizes, more, said):
    q, k = (torch.zeros(size) for size in sizes)
    with pytest.raises(InputError, match=said):
        attend(q, k, k, **more)


class Stub:
    """The package's two functions by the definition, on any device: tokens before heads."""

    def __init__(self):
        self.deterministic = []

    def _flash_attn_fwd(self, q, k, v, *, softmax_scale, causal, return_lse):
        assert return_lse
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        wide = torch.repeat_interleave(k, q.shape[1] // k.shape[1], dim=1)
        return (
            plain(q, k, v, causal, softmax_scale).transpose(1, 2).contiguous(),
            (q @ wide.mT).logsumexp(-1).float(),
            None,
        )

    def _flash_attn_bwd(self, q, k, v, out, g, lse, *, softmax_scale, causal, deterministic, dq, dk, dv):
        self.deterministic.append(deterministic)
        q, k, v, g = (t.transpose(1, 2) for t in (q, k, v, g))
        wide_k, wide_v = repeated(q, k, v)
        p = weights(q, wide_k, causal, softmax_scale)
        dp = g @ wide_v.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * softmax_scale
        shared = (k.shape[0], k.shape[1], -1, *k.shape[2:])
        made = (ds @ wide_k, (ds.mT @ q).view(shared).sum(2), (p.mT @ g).view(shared).sum(2))
        for target, gradient in zip((dq, dk, dv), made, strict=True):
            target.copy_(gradient.transpose(1, 2))


@pytest.fixture
def stub(monkeypatch):
    made = Stub()
    monkeypatch.setattr(flash4, "_package", lambda: made)
    monkeypatch.setattr(flash4, "absent", lambda: None)
    return made


def test_flash4_is_a_torch_operation(stub):
    """Its fakes, its autograd and its compiled form agree with what runs (torch.library.opcheck)."""
    tokens = [t.detach().transpose(1, 2).requires_grad_() for t in drawn()]
    torch.library.opcheck(torch.ops.narrowcast.flash4, (*tokens, True, 0.25, False))
    with torch.no_grad():
        out, lse = torch.ops.narrowcast.flash4(*tokens, True, 0.25, False)
        torch.library.opcheck(
            torch.ops.narrowcast.flash4_backward, (torch.ones_like(out), *tokens, out, lse, True, 0.25, True)
        )


@pytest.mark.parametrize("how", ["eager", "compiled", "checkpointed"])
def test_flash4_gives_gradients(how, stub, monkeypatch):
    monkeypatch.setattr(door.Setting, "on", classmethod(lambda cls, *_, **__: HOPPER))

    def run(q, k, v):
        return attend(q, k, v, kind="flash4")

    def checkpointed(*inputs):
        return torch.utils.checkpoint.checkpoint(run, *inputs, use_reentrant=False)

    inputs = drawn()
    expected = torch.autograd.grad(plain(*inputs, True, 0.25).square().sum(), inputs)
    forms = {
        "eager": run,
        "compiled": torch.compile(run, fullgraph=True, backend="aot_eager"),
        "checkpointed": checkpointed,
    }
    found = torch.autograd.grad(forms[how](*inputs).square().sum(), inputs)
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
    assert stub.deterministic == [False]


def test_flash4_adds_in_a_fixed_order_where_deterministic_algorithms_are_asked_for(stub, monkeypatch):
    monkeypatch.setattr(door.Setting, "on", classmethod(lambda cls, *_, **__: HOPPER))
    inputs = drawn()
    torch.use_deterministic_algorithms(True)
    try:
        attend(*inputs, kind="flash4").sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert stub.deterministic == [True]


def test_a_kernel_that_fails_names_itself_and_the_shape(stub, monkeypatch):
    monkeypatch.setattr(stub, "_flash_attn_fwd", lambda *_, **__: 1 / 0, raising=False)
    with pytest.raises(
        Exception, match=r"kernel flash4 forward, float64 \[2, 24, 4, 16\] on .*division by zero; --attention flash"
    ):
        flash4.flash4(*(t.transpose(1, 2) for t in drawn()), True, 0.25, False)


TOKENS = torch.arange(2 * 24).reshape(2, 24) % 96


def small(**changes):
    config = default_config(96, 24)
    changes = {"hidden_size": 64, "intermediate_size": 64, "num_key_value_heads": 2, "num_hidden_layers": 1} | changes
    for name, value in changes.items():
        setattr(config, name, value)
    return from_config(config, 0).eval()


@pytest.mark.parametrize("compiles", [False, True])
def test_a_models_attention_is_set_for_a_run_and_no_longer(compiles, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "narrowcast.place.attend",
        lambda q, k, v, **how: seen.append((q.shape[1], k.shape[1], how["kind"])) or attend(q, k, v, **how),
    )
    model, place = small(), Place.of("cpu", "float32", "math")
    runs = torch.compile(model, backend="eager", fullgraph=True) if compiles else model
    with torch.no_grad():
        expected = model(input_ids=TOKENS, use_cache=False).logits
        with place.attending(model, place.attention(model)):
            assert torch.allclose(runs(input_ids=TOKENS, use_cache=False).logits, expected, atol=1e-5)
            assert set(seen) == {(4, 2, "math")}
            with torch.autocast("cpu", BF16):  # another dtype than the place's: torch's own
                seen.clear()
                model(input_ids=TOKENS, use_cache=False)
                assert not seen
        model(input_ids=TOKENS, use_cache=False)
    assert not seen and model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("changes", [{"sliding_window": 8}, {"layer_types": ["sliding_attention"]}])
def test_a_model_with_masks_of_its_own_keeps_its_attention(changes):
    model = small(**changes)
    made = Place.of("cpu", "float32").attention(model)
    assert (made.kind, made.why) == ("torch", "it sees a window of the tokens")
    with pytest.raises(
        InputError, match=r"--attention math: the attention of LlamaForCausalLM cannot be set: it sees a window"
    ):
        Place.of("cpu", "float32", "math").attention(model)


def test_on_a_cpu_auto_changes_no_bit():
    model, place = small(), Place.of("cpu", "auto")
    with torch.no_grad():
        before = model(input_ids=TOKENS, use_cache=False).logits
        with place.attending(model, place.attention(model)):
            assert model.config._attn_implementation == "sdpa"
            assert torch.equal(model(input_ids=TOKENS, use_cache=False).logits, before)


def test_training_records_what_ran():
    short = {"recipe": "fp32", "steps": 1, "batch": 2, "context": 16, "eval_batches": 1, "device": "cpu"}
    assert train(TrainConfig(**short)).attention.kind == "torch"
    assert train(TrainConfig(attention="math", **short)).attention.why == "asked for"


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tiny.write(tmp_path))
    words = "train --recipe fp32 --steps 2 --batch 2 --context 16 --vocab 300 --data text --model config.json --out run --device cpu"
    assert cli.run([*words.split(), "--attention", "math"]) == 0
    assert "attention   math (softmax between two products): asked for" in capsys.readouterr().out
    assert cli.run([*words.split(), "--resume"]) == 2
    assert "attention: 'math' then, 'torch' now" in capsys.readouterr().err
    for verb, out in (("train", "other"), ("compare", "third")):
        assert cli.run([verb, "--attention", "flash4", "--device", "cpu", "--out", out]) == 2
        assert (
            "--attention: flash4 (FlashAttention-4) cannot run here: it needs a CUDA device" in capsys.readouterr().err
        )


def test_the_option_names_every_kernel():
    (option,) = AttentionOption.__metadata__
    assert all(kind in option.help for kind in ASKED)

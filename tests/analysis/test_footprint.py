"""Sizes: counted by hand on a model small enough to count."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import narrowcast as nc
from narrowcast.analysis.footprint import Footprint, activation_bytes, footprint, optimizer_traffic

TOKENS = torch.zeros(2, 65, dtype=torch.int64)  # 2 sequences of 64 tokens
M, K, N, VOCAB = 128, 128, 256, 8


class Toy(nn.Module):
    """Two linear layers on the same input, added, and a head; the face of a Hugging Face model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCAB, K)
        self.a = nn.Linear(K, N, bias=False)
        self.b = nn.Linear(K, N, bias=False)
        self.lm_head = nn.Linear(N, VOCAB, bias=False)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        hidden = self.embed(input_ids)
        return SimpleNamespace(logits=self.lm_head(self.a(hidden) + self.b(hidden)))


def converted(recipe: str) -> Toy:
    model = Toy()
    nc.convert(model, recipe)
    return model


def measured(recipe: str) -> Footprint:
    return footprint(converted(recipe), TOKENS)


NARROW, WIDE = 2 * K * N, VOCAB * (K + N)


@pytest.mark.parametrize(
    ("recipe", "bits"),
    [
        ("bf16", 16),
        ("fp16", 16),
        ("fp8-delayed", 8 + 32 / (K * N)),
        ("fp8-rowwise", 8 + 32 / K),
        ("fp8-block", 8 + 32 / 128**2),
        ("mxfp8", 8.25),
        ("mxfp4", 4.25),
        ("mxfp4-rht-sr", 16),
        ("nvfp4", 4 + 8 / 256 + 32 / (K * N)),
        ("int8-block", 8 + 32 / 1024),
    ],
)
def test_weights_with_scales_and_the_rest_in_bfloat16(recipe: str, bits: float) -> None:
    found = measured(recipe)
    assert found.bits_weights == pytest.approx(bits)
    assert found.model_bytes == round((NARROW * bits + WIDE * 16) / 8)
    assert found.optimizer_bytes == 12 * (NARROW + WIDE)


def test_narrow_states_count_at_their_width() -> None:
    """4 bytes and three scales for a matrix, 12 for a vector."""
    model = converted("fp8-rowwise")
    vectors = sum(p.numel() for p in model.parameters() if p.dim() < 2)
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    expected = 12 * vectors + sum(4 * p.numel() + 12 for p in matrices)
    assert footprint(model, TOKENS, "fp8-adam").optimizer_bytes == expected
    assert optimizer_traffic(model, "fp8-adam") == 2 * expected + 6 * (NARROW + WIDE)


def test_without_a_recipe_everything_is_float32() -> None:
    found = measured("fp32")
    assert (found.bits_weights, found.bits_operands) == (32, 32)
    assert found.model_bytes == 4 * (NARROW + WIDE)


def test_operands_are_counted_in_the_shape_their_gemm_reads() -> None:
    # one float32 scale a row: rows are tokens, outputs or inputs, and each tensor is read in both orientations
    elements = 2 * (M * K + N * K + M * N)
    scales = (M + K) + (N + K) + (M + N)
    assert measured("fp8-rowwise").bits_operands == pytest.approx(8 + 32 * scales / elements)
    assert measured("mxfp4").bits_operands == pytest.approx(4.25)


def test_a_shared_input_is_kept_once_and_wide_or_as_codes() -> None:
    bf16 = activation_bytes(converted("bf16"), TOKENS, 16)
    codes = activation_bytes(converted("fp8-delayed"), TOKENS, 16)
    # bf16: the shared input, 2 bytes. fp8-delayed: its codes and scale, once, and the reused codes of both weights.
    assert codes - bf16 == (M * K + 4) + 2 * (K * N + 4) - 2 * M * K


def test_rowwise_casts_again_for_the_backward_pass_and_keeps_the_wide_input() -> None:
    assert measured("fp8-rowwise").activation_bytes == measured("bf16").activation_bytes


def test_what_else_is_kept_is_counted_by_hand() -> None:
    # the embedding and the loss keep their int64 indices, the head its input, the loss the log-probabilities
    # (and its float32 scalar weight)
    bf16 = activation_bytes(converted("bf16"), TOKENS, 16)
    floats = 2 * (M * K + M * N + M * VOCAB)
    integers = 8 * M
    assert floats + integers <= bf16 <= floats + integers + 8


def test_float32_keeps_twice_as_much_as_bfloat16() -> None:
    integers = 8 * M
    wide, half = (measured(r).activation_bytes - integers for r in ("fp32", "bf16"))
    assert wide == 2 * half


def test_counting_leaves_no_hooks_and_no_gradients() -> None:
    model = converted("fp8-delayed")
    before = {k: v.clone() for k, v in model.state_dict().items() if "history" not in k}
    footprint(model, TOKENS)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize("recipe", ["fp32", "bf16", "fp8-tensorwise", "fp8-block"])
def test_a_large_batch_is_counted_from_a_part_of_it(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = converted(recipe), TOKENS.repeat(5, 1)[:7]
    whole = footprint(model, tokens)
    monkeypatch.setattr(sys.modules[activation_bytes.__module__], "_MEASURED", 2 * 64)
    assert footprint(model, tokens) == whole


def test_under_autocast_what_is_not_converted_has_16_bits() -> None:
    wide, narrow = footprint(Toy(), TOKENS), footprint(Toy(), TOKENS, unconverted=16)
    assert (narrow.bits_operands, narrow.bits_weights) == (16.0, 16.0)
    assert wide.model_bytes == 2 * narrow.model_bytes

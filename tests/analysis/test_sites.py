"""What casts lose: hand-made tensors with countable answers, then a converted model left as it was."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import narrowcast as nc
from narrowcast.analysis.loss import sqnr_db
from narrowcast.analysis.sites import OperandLoss, operand_loss, probe
from narrowcast.errors import InputError


class Toy(nn.Module):
    """Embedding, two linear layers and a head, with the face of a Hugging Face model."""

    def __init__(self, width: int = 32, vocab: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.lm_head = nn.Linear(width, vocab)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> SimpleNamespace:
        hidden = self.embed(input_ids)
        return SimpleNamespace(logits=self.lm_head(hidden + self.down(torch.relu(self.up(hidden)))))


def toy(recipe: str) -> tuple[Toy, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, tokens = Toy(), torch.randint(16, (4, 33))
    nc.convert(model, recipe)
    return model, tokens


def loss_of(source: Tensor, spelling: str) -> OperandLoss:
    cast = nc.cast(spelling)
    return operand_loss("layer", "fwd.x", source, cast.apply(source), cast)


def test_an_exact_cast_loses_nothing() -> None:
    assert loss_of(torch.tensor([[1.0, -2.0, 0.0, 6.0]]), "e2m1fn/row/fp32") == OperandLoss(
        "layer", "fwd.x", None, 0.0, 0.0
    )


def test_a_zero_tensor_loses_nothing() -> None:
    assert loss_of(torch.zeros(2, 32), "mxfp8") == OperandLoss("layer", "fwd.x", None, 0.0, 0.0)


def test_sqnr_by_hand() -> None:
    # 1 + 9 over an error of 0.5^2
    assert sqnr_db(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.5])) == pytest.approx(10 * math.log10(10 / 0.25))
    assert sqnr_db(torch.tensor([1.0, 3.0]), torch.tensor([1.0, math.inf])) is None


def test_underflow_counts_what_became_zero_among_what_was_not() -> None:
    # scale 1: 0.2 is nearer to 0 than to 0.5, the smallest value of e2m1fn; the zero does not count
    found = loss_of(torch.tensor([[6.0, 0.2, -0.2, 0.0, 3.0]]), "e2m1fn/row/fp32")
    assert found.underflow == 2 / 4
    assert found.saturate == 0


def test_saturation_is_what_the_range_clips_beyond_rounding() -> None:
    # OCP's floor rule: amax 7.5 gives scale 1 and e2m1fn ends at 6, its last step is 2. 7.5 lies more than half a step
    # beyond it; 6.5 does not, and 4.9 -> 4 is rounding inside the range.
    block = torch.zeros(1, 32)
    block[0, :4] = torch.tensor([7.5, -7.25, 6.5, 4.9])
    assert loss_of(block, "mxfp4").saturate == 2 / 4


def test_rounding_down_at_the_top_of_a_tile_is_no_saturation() -> None:
    # the tile's largest value 4.9 becomes 4: a fifth less, but well inside the range
    block = torch.zeros(1, 32)
    block[0, 0] = 4.9
    assert loss_of(block, "mxfp4").saturate == 0


@pytest.mark.parametrize(
    "spelling", ["e4m3fn/row/fp32", "e2m1fn/1x32/e8m0-ceil", "e2m1fn/1x32/e8m0-four-thirds", "int8/row/fp32"]
)
def test_rules_that_never_clip(spelling: str) -> None:
    assert loss_of(torch.randn(16, 64, generator=torch.Generator().manual_seed(0)), spelling).saturate == 0


def test_formats_without_a_scale_clip_at_their_own_range() -> None:
    cast = nc.cast("e4m3fn")
    source = torch.tensor([[500.0, 460.0, 1.0]])  # 448 ends the range, its last step is 32
    assert operand_loss("l", "fwd.x", source, cast.apply(source), cast).saturate == 1 / 3


def test_a_delayed_scale_clips_what_history_did_not_foresee() -> None:
    cast = nc.cast("e4m3fn/tensor/fp32-delayed4")
    history = torch.tensor([0.0, 1.0, 0.5, 0.0, 0.0])  # slot 0 is the step under way; the largest past maximum is 1
    source = torch.tensor([[0.5, 1.0, 2.0, -4.0]])
    before = history.clone()
    result = cast.apply(source, history=history.clone())
    assert operand_loss("l", "fwd.x", source, result, cast, history).saturate == 2 / 4
    assert torch.equal(history, before)


@pytest.mark.parametrize("recipe", [r for r in nc.recipes() if r != "fp32"])
def test_probe_measures_six_operands_of_every_converted_layer(recipe: str) -> None:
    model, tokens = toy(recipe)
    rows = probe(model, tokens)
    assert [(r.site, r.operand) for r in rows] == [(site, o) for site in ("up", "down") for o in nc.OPERANDS]
    for row in rows:
        assert row.sqnr_db is None or 5 < row.sqnr_db < 140
        assert 0 <= row.underflow < 0.5
        assert 0 <= row.saturate < 0.2


@pytest.mark.parametrize("recipe", ["bf16", "fp8-delayed", "nvfp4"])
def test_probe_leaves_the_model_as_it_was(recipe: str) -> None:
    model, tokens = toy(recipe)
    model.up.weight.grad = torch.ones_like(model.up.weight)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first = probe(model, tokens)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(model.up.weight.grad, torch.ones_like(model.up.weight))
    assert model.down.weight.grad is None
    assert probe(model, tokens) == first


def test_reused_codes_have_the_losses_of_their_first_cast() -> None:
    rows = {(r.site, r.operand): r for r in probe(*toy("int8-block"))}
    for again, first in (("dgrad.w", "fwd.w"), ("wgrad.x", "fwd.x"), ("wgrad.g", "dgrad.g")):
        a, b = rows["up", again], rows["up", first]
        assert (a.sqnr_db, a.underflow, a.saturate) == (b.sqnr_db, b.underflow, b.saturate)


def test_the_loss_scale_lifts_gradients_out_of_underflow() -> None:
    model, tokens = toy("fp16")
    model.lm_head.weight.data.mul_(1e-6)
    plain, scaled = (
        sum(r.underflow for r in probe(model, tokens, s) if r.operand == "dgrad.g") for s in (1.0, 2.0**16)
    )
    assert scaled < plain


def test_a_layer_that_the_batch_does_not_reach_is_named() -> None:
    model, tokens = toy("bf16")
    model.forward = lambda input_ids, use_cache=False: SimpleNamespace(logits=model.lm_head(model.embed(input_ids)))
    with pytest.raises(InputError, match="'up'"):
        probe(model, tokens)

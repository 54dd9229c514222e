"""From a model to a quantized model: what is found, what shares an input, and that what is stored is what runs."""

import copy
from dataclasses import replace

import pytest
import torch
from tests.ptq.architectures import TABLE, built

from narrowcast.errors import InputError
from narrowcast.ptq.blocks import find_blocks
from narrowcast.ptq.catalogue import recipe, recipes
from narrowcast.ptq.observe import wiring
from narrowcast.ptq.pipeline import quantize_model
from narrowcast.ptq.recipe import Awq, PtqRecipe, Scheme, Smooth
from narrowcast.ptq.targets import find_targets
from narrowcast.quantize import cast
from narrowcast.transforms import Hadamard

every_architecture = pytest.mark.parametrize("architecture", TABLE, ids=lambda a: a.name)
LLAMA = TABLE[0]
WIDE = Scheme(cast("float32"))


def runs(model, architecture, count: int = 2):
    return [lambda s=s: model(**architecture.inputs(s)) for s in range(count)]


def logits(model, architecture) -> torch.Tensor:
    with torch.no_grad():
        return model(**architecture.inputs(99)).logits


@every_architecture
def test_every_matrix_is_narrowed_or_kept_with_a_reason(architecture):
    model = built(architecture)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    found = quantize_model(model, quick(recipe("w4a16-gptq-g32")), runs(model, architecture))
    names = {row.name.split("[")[0] for row in found.narrowed}
    wide = {kept.name for kept in found.kept}
    matrices = {n for n, p in before.items() if p.dim() >= 2}
    assert names | wide >= matrices and not names & wide
    assert all(kept.why for kept in found.kept)
    for name, parameter in model.named_parameters():
        assert (name in names) == (not torch.equal(parameter, before[name])), name
    assert all(row.rows or row.notes for row in found.narrowed)
    assert logits(model, architecture).isfinite().all()


@every_architecture
def test_what_is_stored_is_what_runs(architecture):
    model = built(architecture)
    found = quantize_model(model, recipe("w4a16-rtn-g32"), [])
    targets, _ = find_targets(model)
    stored = {row.name: row.quantized.dequantize() for row in found.narrowed}
    for target in targets:
        for i, matrix in enumerate(target.matrices()):
            name = f"{target.name}[{i}]" if target.kind == "experts" else target.name
            assert torch.equal(stored[name], matrix), name


@every_architecture
def test_balancing_and_rotating_alone_change_nothing_but_rounding(architecture):
    model = built(architecture)
    before = logits(model, architecture)
    for change in (
        {"balance": Smooth(0.5)},
        {"balance": Awq(8)},
        {"scheme": Scheme(cast("float32"), transform=Hadamard(16))},
    ):
        changed = copy.deepcopy(model)
        chosen = PtqRecipe("wide", "changes nothing", "test", **({"scheme": WIDE} | change))
        if "scheme" in change and architecture.name in ("resnet", "vit", "mixtral"):
            continue  # convolutions and experts do not rotate their inputs
        quantize_model(changed, chosen, runs(changed, architecture))
        assert torch.allclose(logits(changed, architecture), before, atol=2e-4), change


def test_llamas_wiring():
    model = built(LLAMA)
    targets, kept = find_targets(model)
    groups = wiring(model, targets, runs(model, LLAMA)[0])
    first = [[t.module.split(".")[-1] for t in g.targets] for g in groups[:4]]
    assert first == [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    makers = [g.maker for g in groups[:4]]
    block = "model.layers.0."
    assert makers == [
        (f"{block}input_layernorm.weight",), (), (f"{block}post_attention_layernorm.weight",), (f"{block}mlp.up_proj.weight",),
    ]  # fmt: skip
    assert groups[1].why and groups[3].rows
    assert {k.name: k.why for k in kept} == {
        "model.embed_tokens.weight": "kept wide by rule '*embed*'",
        "lm_head.weight": "kept wide by rule '*lm_head'",
    }
    assert find_blocks(model)[0] == "model.layers" and len(find_blocks(model)[1]) == 2


def test_a_norm_that_feeds_more_than_the_products_absorbs_nothing():
    bert = next(a for a in TABLE if a.name == "bert")
    model = built(bert)
    groups = wiring(model, find_targets(model)[0], runs(model, bert)[0])
    assert all(not g.maker for g in groups if "attention" in g.name)


def test_weights_that_share_an_input_share_the_scale_of_the_tensor():
    model = built(LLAMA)
    found = quantize_model(model, recipe("nvfp4"), runs(model, LLAMA))
    scales = {row.name.split("layers.")[1]: float(row.quantized.tensor_scale) for row in found.narrowed}
    assert (
        scales["0.self_attn.q_proj.weight"]
        == scales["0.self_attn.k_proj.weight"]
        == scales["0.self_attn.v_proj.weight"]
    )
    assert scales["0.mlp.gate_proj.weight"] == scales["0.mlp.up_proj.weight"] != scales["0.mlp.down_proj.weight"]


def test_experts_are_quantized_one_by_one():
    mixtral = next(a for a in TABLE if a.name == "mixtral")
    model = built(mixtral)
    found = quantize_model(model, quick(recipe("w4a16-gptq-g32")), runs(model, mixtral, 4))
    experts = [row for row in found.narrowed if "experts" in row.name]
    assert len(experts) == 2 * 2 * 4
    assert all(row.rows for row in experts if not row.notes) and any(row.rows for row in experts)


def quick(chosen: PtqRecipe) -> PtqRecipe:
    """The recipe with a coarser scale search: the same path, sooner."""
    return replace(chosen, search=replace(chosen.search, steps=5)) if hasattr(chosen.search, "steps") else chosen


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_runs_and_its_inputs_are_narrowed(name):
    model = built(LLAMA)
    before = logits(model, LLAMA)
    chosen = quick(recipe(name))
    quantize_model(model, chosen, runs(model, LLAMA))
    casts = [m for m in model.modules() if type(m).__name__ == "InputCast"]
    assert len(casts) == (14 if chosen.scheme.activation or chosen.scheme.transform else 0)
    after = logits(model, LLAMA)
    assert after.isfinite().all() and not torch.equal(after, before)
    if chosen.scheme.static:
        assert all(float(c.amax) > 0 for c in casts)


def test_quantizing_twice_gives_the_same_bits():
    outcomes = []
    for _ in range(2):
        model = built(LLAMA)
        quantize_model(model, recipe("w8a8-int8"), runs(model, LLAMA))
        outcomes.append(logits(model, LLAMA))
    assert torch.equal(*outcomes)


def test_bad_input_is_named():
    model = built(LLAMA)
    with pytest.raises(InputError, match="needs calibration"):
        quantize_model(model, recipe("w4a16-gptq-g32"), [])
    with pytest.raises(InputError, match="matches no module"):
        quantize_model(model, replace(recipe("w8a8-fp8"), keep_wide=("*nothing",)), [])
    with pytest.raises(InputError, match="no weight of the model"):
        quantize_model(model, replace(recipe("w8a8-fp8"), keep_wide=("*",)), [])
    damaged = built(LLAMA)
    damaged.model.layers[1].mlp.up_proj.weight.data[3, 3] = float("nan")
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj"):
        quantize_model(damaged, recipe("w8a8-fp8"), [])
    with pytest.raises(InputError, match="not finite"):
        quantize_model(damaged, recipe("w4a16-gptq-g32"), runs(damaged, LLAMA))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Scheme(cast("int4/1x32/fp32/nearest-even/hadamard32")),
        lambda: Scheme(cast("int8/row/fp32"), transform=Hadamard(32, "fresh")),
        lambda: Scheme(cast("int8/row/fp32"), cast("int8/row/fp32"), static=True),
        lambda: Scheme(cast("int8/row/fp32"), static=True),
    ],
)
def test_impossible_schemes_are_refused(make):
    with pytest.raises(InputError, match="scheme"):
        make()

"""The roofline: counted by hand where it can be, and the orderings that hardware dictates."""

import pytest

import narrowcast as nc
from narrowcast.analysis.roofline import H100, LLAMA_8B, Layer, Work, gemm_kind, operand_unit, predict
from narrowcast.kernels.plan import Plan, plan
from narrowcast.nn import OPERANDS

RECIPES = nc.recipes()
SQUARE = Work("one square layer", (Layer(4096, 4096),), 4096)


def seconds(name: str, work: Work = LLAMA_8B) -> float:
    return predict(RECIPES[name].linear, work).seconds


def test_a_large_bf16_layer_is_three_gemms_at_peak() -> None:
    found = predict(RECIPES["bf16"].linear, SQUARE)
    assert found.gemms == pytest.approx(3 * 2 * 4096**3 / 989.5e12)
    assert found.casts == 0
    assert found.launches == pytest.approx(3 * 3e-6)
    assert found.seconds == pytest.approx(found.gemms + found.launches)


def test_one_token_is_bound_by_bandwidth() -> None:
    work = Work("one token", (Layer(1024, 1024),), 1)
    n = 1024
    fwd = dgrad = 2 * n + 2 * n * n + 2 * n  # x, w, y
    wgrad = 2 * n + 2 * n + 4 * n * n  # g, x, and float32 dw
    assert predict(RECIPES["bf16"].linear, work).gemms == pytest.approx((fwd + dgrad + wgrad) / 3.35e12)


def test_rowwise_casts_read_bfloat16_and_write_codes_and_scales() -> None:
    found = predict(RECIPES["fp8-rowwise"].linear, SQUARE)
    assert found.casts == pytest.approx(6 * (4096 * 4096 * 3 + 4096 * 4) / 3.35e12)
    assert found.launches == pytest.approx((3 + 6) * 3e-6)


def test_a_current_tensor_scale_reads_its_source_twice_and_a_delayed_one_once() -> None:
    current, delayed = (predict(RECIPES[n].linear, SQUARE) for n in ("fp8-tensorwise", "fp8-delayed"))
    assert current.casts / delayed.casts == pytest.approx(5 / 3, rel=1e-6)
    assert current.gemms == delayed.gemms


def test_other_bytes_and_wide_layers_add_up() -> None:
    spec = RECIPES["fp8-rowwise"].linear
    base = predict(spec, SQUARE)
    head = Work("with head", SQUARE.layers, SQUARE.tokens, (Layer(4096, 4096),))
    assert predict(spec, SQUARE, other_bytes=3.35e12).seconds == pytest.approx(base.seconds + 1)
    assert predict(spec, head).gemms == pytest.approx(base.gemms + predict(RECIPES["bf16"].linear, SQUARE).gemms)


def test_count_repeats_a_layer() -> None:
    spec = RECIPES["mxfp8"].linear
    twice = Work("two", (Layer(256, 512, 2),), 64)
    assert predict(spec, twice).seconds == pytest.approx(2 * predict(spec, Work("one", (Layer(256, 512),), 64)).seconds)


@pytest.mark.parametrize(
    ("spelling", "unit"),
    [
        ("float32", "fp32"),
        ("bfloat16", "bf16"),
        ("float16", "bf16"),
        ("e4m3fn/tensor/fp32", "fp8"),
        ("e5m2/tensor/fp32-delayed16", "fp8"),
        ("e4m3fn/row/fp32", "fp8"),
        ("e4m3fn/1x128+pad/fp32", "fp8"),
        ("e4m3fn/128x128/fp32", "fp8"),
        ("e4m3fn/1x128+pad/e8m0-ceil", "fp8"),
        ("e4m3fn/1x128/e4m3fn+fp32", "none"),
        ("int8/32x32+pad/fp32", "int8"),
        ("mxfp8", "none"),
        ("mxfp4", "none"),
        ("nvfp4", "none"),
        ("e3m2fn/tensor/fp32", "none"),
    ],
)
def test_units_of_a_hopper_gpu(spelling: str, unit: str) -> None:
    assert operand_unit(nc.cast(spelling)) == unit


@pytest.mark.parametrize(
    ("recipe", "kinds"),
    [
        ("fp32", ("fp32",) * 3),
        ("bf16", ("bf16",) * 3),
        ("fp8-rowwise", ("fp8",) * 3),
        ("int8-block", ("int8",) * 3),
        ("fp8-hybrid", ("fp8",) * 3),
        ("mxfp4-rht-sr", ("bf16",) * 3),
    ],
)
def test_kinds_of_gemms(recipe: str, kinds: tuple[str, ...]) -> None:
    assert tuple(gemm_kind(RECIPES[recipe].linear, gemm) for gemm in ("fwd", "dgrad", "wgrad")) == kinds


@pytest.mark.parametrize("recipe", [name for name, found in RECIPES.items() if found.linear])
def test_what_is_predicted_is_what_runs(recipe: str) -> None:
    linear = RECIPES[recipe].linear
    for gemm in ("fwd", "dgrad", "wgrad"):
        runs = plan(linear.resolved(gemm))
        if isinstance(runs, Plan):
            assert (runs.units == "fp8") == (gemm_kind(linear, gemm) == "fp8"), gemm


def test_what_the_gpu_has_units_for_is_faster_and_what_it_lacks_is_not() -> None:
    assert seconds("fp8-delayed") < seconds("fp8-tensorwise") < seconds("bf16") < seconds("fp32")
    assert seconds("int8-block") < seconds("bf16")
    for decoded in ("mxfp8", "mxfp4", "mxfp4-rht-sr", "nvfp4"):
        assert seconds(decoded) > seconds("bf16")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_a_time_and_a_note(name: str) -> None:
    found = predict(RECIPES[name].linear, LLAMA_8B)
    assert found.seconds > 0
    assert found.note.count("\n") == 0
    assert "gemms" in found.note


def test_the_note_says_what_is_decoded() -> None:
    assert "no unit for e2m1fn/1x32, decoded to bfloat16" in predict(RECIPES["mxfp4"].linear, LLAMA_8B).note


def test_the_reference_is_four_layers_of_an_8b_model() -> None:
    q = o = 4096 * 4096
    k = v = 1024 * 4096
    ffn = 3 * 14336 * 4096
    assert sum(layer.count * layer.out * layer.inputs for layer in LLAMA_8B.layers) == 4 * (q + k + v + o + ffn)
    assert LLAMA_8B.tokens == 16384


def test_constants_are_named_with_unit_and_source() -> None:
    assert {c.name for c in H100.constants} == {"fp8", "int8", "bf16", "tf32", "fp32", "bandwidth", "launch"}
    assert all(c.unit and c.source for c in H100.constants)
    assert H100["bandwidth"] == 3.35e12


@pytest.mark.parametrize("label", OPERANDS)
def test_both_operands_of_a_gemm_share_the_contraction_axis(label: str) -> None:
    layer = Layer(3, 5)
    contraction = {"fwd": 5, "dgrad": 3, "wgrad": 7}[label.split(".")[0]]
    assert layer.shape(label, 7)[1] == contraction

"""Operators beside products: narrow norms and sums, batch normalisation estimated anew, tuning by accuracy."""

import copy

import pytest
import torch
from torch import nn

from narrowcast.errors import InputError
from narrowcast.ptq.operators import Elementwise, narrow_norms, norms, recalibrate
from narrowcast.ptq.pipeline import quantize_model
from narrowcast.ptq.recipe import PtqRecipe, Scheme
from narrowcast.ptq.tuning import tune
from narrowcast.quantize import cast

G = torch.Generator().manual_seed(0)
EIGHT = cast("e4m3fn/tensor/fp32")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    ).eval()


def test_norms_see_the_cast_of_their_input_static_or_not():
    x = torch.randn(16, 3, 8, 8, generator=G)
    model = net()
    seen = model[0](x)
    assert list(norms(model)) == ["1"]
    dynamic, static = copy.deepcopy(model), copy.deepcopy(model)
    assert narrow_norms(dynamic, EIGHT) == ["1"]
    assert torch.equal(dynamic[1](seen), model[1](EIGHT.apply(seen)))
    narrow_norms(static, EIGHT, [lambda: static(x)])
    assert float(static[1].input_cast.amax) == float(seen.detach().abs().max())
    assert torch.equal(static[1](seen), model[1](EIGHT.apply(seen)))
    assert torch.equal(static[1](seen * 9).amax(), static[1](seen * 99).amax())  # what lies beyond saturates
    with pytest.raises(InputError, match="narrow already"):
        narrow_norms(static, EIGHT)
    with pytest.raises(InputError, match="no normalisation"):
        narrow_norms(nn.Linear(2, 2), EIGHT)


def test_sums_and_products_of_like_tensors_are_narrow_and_biases_are_not():
    a, b = (torch.randn(4, 6, generator=G) for _ in range(2))
    layer = nn.LayerNorm(6)
    wide = layer(a)
    with Elementwise(EIGHT) as mode:
        assert torch.equal(a + b, (EIGHT.apply(a) + EIGHT.apply(b)))
        assert torch.equal(a * b, EIGHT.apply(a) * EIGHT.apply(b))
        assert torch.equal(a + b[0], a.add(b[0])) and torch.equal(a * 2.0, torch.mul(a, 2.0))
        assert torch.equal(layer(a), wide)
    met = mode.met
    assert met >= 2
    assert torch.equal(a + b, torch.add(a, b)) and mode.met == met


def test_the_casts_own_arithmetic_is_left_alone():
    x = torch.randn(16, 3, 8, 8, generator=G)
    model = net()
    narrow_norms(model, cast("e5m2"))
    with torch.no_grad():
        expected = model(x)
        with Elementwise(cast("e2m1fn/tensor/fp32")) as mode:
            assert torch.equal(model(x), expected) and mode.met == 0


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_static_scale_of_a_convolution_is_made_for_all_groups(groups):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=groups)).eval()
    x = torch.randn(2, 4, 6, 6, generator=G)
    x[:, -1] *= 50
    scheme = Scheme(cast("int8/row/fp32"), EIGHT, static=True)
    quantize_model(model, PtqRecipe("static", "", "", scheme), [lambda: model(x)])
    assert float(model[0].input_cast.amax) == float(x.abs().max())


def test_batch_normalisation_is_estimated_anew_and_nothing_else_changes():
    data = [torch.randn(64, 3, 8, 8, generator=G) * 2 + 1 for _ in range(4)]
    model = net()
    rows = torch.cat([model[0](x) for x in data]).transpose(0, 1).flatten(1)
    weights = [p.clone() for p in model.parameters()]
    assert recalibrate(model, [lambda x=x: model(x) for x in data]) == 1
    assert torch.allclose(model[1].running_mean, rows.mean(1), atol=1e-5)
    assert torch.allclose(model[1].running_var, rows.var(1), rtol=2e-2)
    assert model[1].momentum == 0.1 and not model[1].training
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), weights, strict=True))
    before = model(data[0])
    recalibrate(model, [lambda x=x: model(x) for x in data])
    assert torch.allclose(model(data[0]), before, atol=1e-4)
    with pytest.raises(InputError, match="give some"):
        recalibrate(model, [])


def test_tuning_takes_the_first_that_passes_and_else_gives_layers_back():
    class Made(nn.Module):
        def __init__(self, score):
            super().__init__()
            self.score = score

    def way(base):
        return lambda widened: Made(base + 0.02 * len(widened))

    def run(*bases, **more):
        ways = [(f"way {i}", way(b)) for i, b in enumerate(bases)]
        return tune(ways, Made(1.0), lambda m: m.score, lambda m: ["a", "b", "c"], **more)

    first = run(0.98, 0.995, 0.999)
    assert first.name == "way 1" and first.passed and not first.widened and len(first.tried) == 2
    given = run(0.9, 0.95, 0.94)
    assert given.name == "way 1" and given.passed and given.widened == ("a", "b")
    assert not run(0.9, most=2).passed
    with pytest.raises(InputError, match="no way"):
        run()

"""Attention that is causal without a mask: the same numbers, and only where a mask would say no more."""

from typing import Any

import pytest
import torch

from narrowcast.models import compiled, default_config, from_config, plain_causal

TOKENS = torch.arange(2 * 24).reshape(2, 24) % 96


def small(**changes: Any) -> Any:
    config = default_config(96, 24)
    for name, value in ({"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1} | changes).items():
        setattr(config, name, value)
    return from_config(config, 0).eval()


def test_the_logits_are_those_of_a_mask() -> None:
    model = small()
    with torch.no_grad():
        masked = model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS), use_cache=False).logits
        assert plain_causal(model)
        assert torch.allclose(model(input_ids=TOKENS, use_cache=False).logits, masked, rtol=1e-5, atol=1e-6)


def test_a_compiled_model_gives_attention_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fast kernels take none, and `transformers` writes one out whenever it is compiled."""
    seen: list[Any] = []

    def graph(module: Any, inputs: Any) -> Any:
        seen.extend(n for n in module.graph.nodes if "scaled_dot_product" in str(n.target))
        return module.forward

    original = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: original(model, backend=graph, **how))
    with torch.no_grad():
        compiled(small())(input_ids=TOKENS, use_cache=False)
    assert [(n.kwargs["attn_mask"], n.kwargs["is_causal"]) for n in seen] == [(None, True)]


@pytest.mark.parametrize("changes", [{"sliding_window": 8}, {"layer_types": ["sliding_attention"]}])
def test_a_mask_that_says_more_stays(changes: dict[str, Any]) -> None:
    model = small(**changes)
    assert not plain_causal(model)
    assert model.config._attn_implementation == "sdpa"


def test_eager_attention_stays() -> None:
    model = small()
    model.set_attn_implementation("eager")
    assert not plain_causal(model)
    assert not plain_causal(torch.nn.Linear(2, 2))

"""The bootstrap and rank correlation, against SciPy and against samples written out."""

import math

import pytest
import torch
from scipy import special, stats

from narrowcast.errors import InputError
from narrowcast.metrics import (
    bootstrap,
    kl_divergence,
    mean_of,
    resamples,
    rouge_1,
    rouge_l,
    same_top,
    spearman,
    window,
    window_figures,
)

G = torch.Generator().manual_seed(0)
TIED = torch.randint(0, 6, (40,), generator=G).double()
OTHER = TIED + torch.randint(-2, 3, (40,), generator=G)


def test_spearman_is_scipys_with_ties_and_of_samples_written_out():
    assert float(spearman(TIED, OTHER)) == pytest.approx(stats.spearmanr(TIED, OTHER).statistic, abs=1e-12)
    weights = resamples(40, 25, seed=3)
    found = spearman(TIED, OTHER, weights)
    for row, counts in zip(found, weights.long(), strict=True):
        a, b = (x.repeat_interleave(counts) for x in (TIED, OTHER))
        assert float(row) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert math.isnan(float(spearman(torch.ones(5), torch.arange(5.0))))
    with pytest.raises(InputError, match="at least two"):
        spearman(torch.ones(1), torch.ones(1))


def test_every_sample_has_as_many_units_as_there_are_and_all_are_equally_likely():
    counts = resamples(30, 2000, seed=1)
    assert (counts.sum(1) == 30).all()
    assert (counts.mean(0) - 1).abs().max() < 5 * math.sqrt((1 - 1 / 30) / 2000)
    assert torch.equal(counts, resamples(30, 2000, seed=1)) and not torch.equal(counts, resamples(30, 2000, seed=2))


def test_the_interval_of_a_mean_is_scipys():
    x = torch.randn(200, generator=torch.Generator().manual_seed(5)).double() + 3
    found = bootstrap(mean_of(x), 200, draws=4000, seed=0)
    theirs = stats.bootstrap((x.numpy(),), lambda v, axis: v.mean(axis), n_resamples=4000, method="percentile", rng=0)
    assert found.value == pytest.approx(float(x.mean()))
    spread = float(x.std()) / math.sqrt(200)
    assert abs(found.low - theirs.confidence_interval.low) < 0.2 * spread
    assert abs(found.high - theirs.confidence_interval.high) < 0.2 * spread
    assert found.value in found and found.half_width == pytest.approx(1.96 * spread, rel=0.1)


def test_what_both_models_find_hard_cancels():
    hard = 10 * torch.randn(100, generator=G).double()
    a, b = hard, hard + 0.01
    apart = bootstrap(mean_of(b - a), 100)
    assert apart.low == pytest.approx(0.01) and apart.high == pytest.approx(0.01)
    with pytest.raises(InputError, match="level"):
        bootstrap(mean_of(a), 100, level=1.0)
    with pytest.raises(InputError, match="at least one unit"):
        resamples(0)


def test_divergence_by_hand():
    reference, logits = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, 0.0]])
    assert float(kl_divergence(reference, logits)) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert float(kl_divergence(reference, reference + 7.0)) == pytest.approx(0.0, abs=1e-12)
    assert same_top(reference, torch.tensor([[0.0, 0.1]])).tolist() == [True]


@pytest.mark.parametrize(
    ("reference", "text", "one", "longest"),
    [
        ("police killed the gunman", "police kill the gunman", 0.75, 0.75),  # Lin 2004, section 3
        ("police killed the gunman", "the gunman kill police", 0.75, 0.5),
        ("a a b", "a b b", 2 / 3, 2 / 3),
        ("a b", "c d", 0.0, 0.0),
        ("same words", "same words", 1.0, 1.0),
        ("", "", 1.0, 1.0),
        ("a", "", 0.0, 0.0),
    ],
)
def test_rouge_of_the_papers_sentences(reference, text, one, longest):
    assert rouge_1(reference.split(), text.split()) == pytest.approx(one)
    assert rouge_l(reference.split(), text.split()) == pytest.approx(longest)


@pytest.mark.parametrize("at_once", [1, 9, 1 << 20])
def test_the_figures_of_a_window_are_scipys_whatever_is_taken_at_once(at_once, monkeypatch):
    monkeypatch.setattr(window, "_AT_ONCE", at_once)
    target, (one, other) = torch.randint(0, 4, (7,), generator=G), torch.randn(2, 7, 4, generator=G)
    found = window_figures(target, other, one)
    logs = [torch.from_numpy(special.log_softmax(x.double().numpy(), 1)) for x in (one, other)]
    assert found.tokens == 7 and found.loss == pytest.approx(-float(logs[1].gather(1, target[:, None]).sum()))
    assert found.divergence == pytest.approx(float(stats.entropy(logs[0].exp().T, logs[1].exp().T).sum()))
    assert found.agreed == int((logs[0].argmax(1) == logs[1].argmax(1)).sum())
    assert window_figures(target, other).loss == found.loss and window_figures(target, other).divergence == 0.0

"""Errors of multipliers: L-Mul's table (sheet 77), computed independently there; its energies."""

import pytest

from narrowcast.analysis.multipliers import energy_rows, product_errors


@pytest.mark.parametrize(
    ("name", "mean", "square", "relative"),
    [("lmul3", -0.086, 0.0176, 4.8), ("lmul4", 0.012, 0.0065, 3.0), ("lmul10", 0.011, 0.0049, 2.6), ("e8m3", 0.0, 0.0061, 2.9)],
)  # fmt: skip
def test_errors_are_the_tables(name, mean, square, relative):
    found = product_errors((name,), 100_000)[name]
    assert found[0] == pytest.approx(mean, abs=2e-3)
    assert found[1] == pytest.approx(square, rel=0.03) and found[2] == pytest.approx(relative, rel=0.03)


def test_energies_come_to_the_papers_figures_within_rounding():
    rows = {row[0]: row[1] for row in energy_rows()}
    assert rows["saved by L-Mul, a float32 product, %"] == pytest.approx(97.3, abs=0.05)
    assert rows["saved by L-Mul, a float32 product and its addition, %"] == pytest.approx(78.3, abs=0.05)

"""Quantizations of one model side by side: which are beaten, what is refused, what the page shows."""

import copy
from typing import Any

import pytest

from narrowcast.errors import InputError
from narrowcast.report.beside import beside, beside_page, sentence


def made(name: str, size: int, loss: float) -> dict[str, Any]:
    """Return as much of a report as stands side by side."""
    speed = {"prefill": 0.1, "decode": 0.001, "prompt": 2048, "batch": 1}
    return {
        "model": {"name": "a model"},
        "recipe": {"name": name, "summary": f"what {name} does"},
        "calibration": {"source": "a text"},
        "bytes_before": 1000,
        "bytes_after": size,
        "judgement": {"tokens": 80, "before": 1.0, "after": loss, "divergence": loss - 1, "agreement": 0.9},
        "plan": {"speed": {"gpu": "a GPU", "before": speed, "after": speed}},
        "command": f"narrowcast quantize --recipe {name}",
        "versions": {"torch": "2.13.0"},
    }


REPORTS = [made("large", 500, 1.01), made("small", 250, 1.1), made("poor", 300, 1.2), made("twin", 250, 1.1)]


def test_what_is_larger_and_worse_than_another_is_beaten() -> None:
    rows = beside(REPORTS)["rows"]
    assert [(row["recipe"], row["best"]) for row in rows] == [
        ("small", True), ("twin", True), ("poor", False), ("large", True),
    ]  # fmt: skip
    assert "one of these beats each of the other 1" in sentence(beside(REPORTS))


def test_the_page_names_every_recipe_and_its_command() -> None:
    page = beside_page(beside(REPORTS))
    for report in REPORTS:
        assert report["command"] in page
    assert "Worth choosing between: small (4.0x smaller, +10.5 % perplexity)" in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.update(judgement=None), "small: was not judged"),
        (lambda r: r["model"].update(name="another"), "small: model another, but a model for large"),
        (lambda r: r["judgement"].update(tokens=9), "small: tokens judged 9, but 80 for large"),
        (lambda r: r["judgement"].update(before=1.5), "small: loss of the original 1.5, but 1.0 for large"),
    ],
)
def test_what_was_not_judged_alike_is_refused(change: Any, said: str) -> None:
    reports = copy.deepcopy(REPORTS)
    change(reports[1])
    with pytest.raises(InputError, match=said):
        beside(reports)


def test_one_alone_is_refused() -> None:
    with pytest.raises(InputError, match="at least two"):
        beside(REPORTS[:1])

"""The page about formats: whole for every kind of format, and drawn by a browser."""

import pytest
import torch
from tests.browser import browse, needs_chromium

import narrowcast as nc
from narrowcast.analysis.curves import crossings, curves, usual_crests
from narrowcast.analysis.describe import describe
from narrowcast.analysis.tensors import against
from narrowcast.report.formats import formats_page

NAMES = ("int4", "e4m3fn", "nvfp4", "float32", "int1_full")


@pytest.fixture(scope="module")
def data():
    rows = [describe(name) | curves(name) for name in NAMES]
    casts = {name: nc.cast(name) for name in NAMES}
    found = against([("<w>", torch.randn(8, 64)), ("b", torch.ones(3))], casts)
    return {
        "formats": rows,
        "crests": usual_crests(),
        "crossings": crossings(rows),
        "against": {"name": "<file>", **found},
    }


def test_the_page_escapes_and_is_whole(data):
    page = formats_page(data)
    assert "<file>" not in page and "&lt;file&gt;" in page and "&lt;w&gt;" in page
    assert "nan" not in page.split("const FIGURES")[1].lower().replace("nanos", "")


def test_without_a_file_or_small_formats_sections_are_left_out(data):
    page = formats_page({**data, "formats": data["formats"][3:4], "crossings": [], "against": None})
    assert "Which numbers exist" not in page and "On &lt;file" not in page and "Where two of them cross" not in page


def test_curves_of_two_formats_cross_once():
    def law(name: str, decibels: list[float]) -> dict:
        return {"name": name, "crest": {"crest": [1.0, 3.0, 5.0], "sqnr_db": decibels}}

    (found,) = crossings(
        [law("float", [20.0, 20.0, 20.0]), law("int", [26.0, 20.0, 14.0]), law("best", [40.0, 40.0, 40.0])]
    )
    assert (found["below"], found["above"]) == ("int", "float")
    assert found["crest"] == pytest.approx(3.0, abs=0.02) and found["sqnr_db"] == 20


@needs_chromium
def test_a_browser_draws_the_page(data, tmp_path):
    dom, console = browse(formats_page(data), tmp_path)
    assert not console
    assert dom.count('class="plot js-plotly-plot"') == 11

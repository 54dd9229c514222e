"""What the plots hold: the numbers of the report, names that stand apart, one colour and dash a recipe."""

import itertools
import json
import re
from pathlib import Path

import pytest
from tests.browser import browse, needs_chromium
from tests.report.made_up import OPERANDS, SITES, report

from narrowcast.report import render, summary
from narrowcast.report.figures import (
    _apart,
    clock_figure,
    colours,
    dashes,
    drift_figure,
    gap_figure,
    heat_maps,
    loss_figure,
)


def test_each_recipe_has_one_colour_and_dash_of_its_own() -> None:
    signs = [(colours(report())[name], dashes(report())[name]) for name in colours(report())]
    assert len(set(signs)) == len(report()["rows"])
    assert signs[0] == ("#000000", "solid")
    for kind in ("val", "train"):
        for line in loss_figure(report(), kind)["data"]:
            assert line["line"]["color"] == colours(report())[line["name"]]


def test_the_gap_plot_holds_every_run_that_ended_and_the_noise_band() -> None:
    figure = gap_figure(report())
    points = {p["text"][0]: (p["x"][0], p["y"][0]) for p in figure["data"]}
    assert points == {r["recipe"]: (r["bits_operands"], r["gap"]) for r in report()["rows"] if r["gap"] is not None}
    (band,) = figure["layout"]["shapes"]
    assert (band["y0"], band["y1"]) == (-0.0123, 0.0123)


def test_the_drift_plot_is_the_loss_minus_the_paired_baselines() -> None:
    made = report()
    made["rows"][1]["gap"] = 0.005  # the paired run ended above the mean of the seeds
    figure = drift_figure(made)
    lines = {line["name"]: line for line in figure["data"]}
    assert set(lines) == {"fp32", "bf16", "fp8-rowwise", "mxfp8", "mxfp4"}
    assert lines["bf16"]["y"] == [0, 0, 0]
    assert lines["mxfp4"]["y"] == pytest.approx([0, 0.1, 0.125])
    (band,) = figure["layout"]["shapes"]
    assert (band["y0"], band["y1"]) == pytest.approx((-0.005 - 0.0123, -0.005 + 0.0123))
    assert figure["layout"]["yaxis"]["range"][1] > 0.125


def test_a_run_that_diverged_shows_its_training_loss_up_to_there() -> None:
    lines = {line["name"]: line["x"] for line in loss_figure(report(), "train")["data"]}
    assert lines["int8-block"] == [1, 2]
    assert "int8-block" not in {line["name"] for line in loss_figure(report(), "val")["data"]}


def test_the_clock_shows_where_something_ran_natively() -> None:
    made = report()
    assert 'id="clock"' not in render(made)
    made["rows"][2]["conversion"][0]["backend"] = "native"
    assert 'id="clock"' in render(made)
    assert "its rounding makes a step here longer" not in render(made)
    lines = {line["name"]: line for line in clock_figure(made)["data"]}
    row = made["rows"][2]
    assert lines[row["recipe"]]["x"] == [pytest.approx(step * row["step_seconds"]) for step, _ in row["val"]]


@pytest.mark.parametrize("places", [[0.0], [0.0, 0.0, 0.0], [0.0, 5.0, 100.0, 103.0, 104.0], [0.0, 14.0, 16.0, 17.0]])
def test_labels_stand_apart_in_their_order_and_around_their_places(places: list[float]) -> None:
    shifts = _apart(places, 15.0)
    put = [place + shift for place, shift in zip(places, shifts, strict=True)]
    assert all(low + 15 <= high + 0.21 for low, high in itertools.pairwise(put))  # rounded to 0.1 pixel
    assert abs(sum(shifts)) < 0.1 * len(places)


def test_labels_that_are_far_apart_stay() -> None:
    assert _apart([0.0, 20.0, 50.0], 15.0) == [0, 0, 0]


def test_heat_maps_hold_every_layer_and_operand() -> None:
    maps = heat_maps(report())
    assert set(maps) == {"bf16", "fp8-rowwise", "mxfp8", "mxfp4"}
    assert maps["mxfp4"]["operands"] == list(OPERANDS)
    assert len(maps["mxfp4"]["sites"]) == len(SITES)
    assert maps["mxfp4"]["sqnr_db"] == [[18.5, None, 18.5, 18.5, 18.5, 18.5]] * 2


def test_findings_never_call_the_undistinguished_equal() -> None:
    sentences = summary(report())
    assert sentences[0].startswith("fp8-rowwise is the narrowest recipe that cannot be told from bf16 here: 8.06 bits")
    assert sentences[1] == "Better than bf16 by more than the noise: mxfp8 (-0.0500)."
    assert sentences[2] == "Worse than bf16 by more than the noise: mxfp4 (+0.1250)."
    assert sentences[3] == "Not distinguishable from bf16 under another seed: fp32, fp8-rowwise."
    assert sentences[4].startswith("Recipe int8-block diverged at step 2")


def test_findings_where_all_are_worse_or_none_ran() -> None:
    made = report()
    made["rows"] = [r for r in made["rows"] if r["recipe"] in ("bf16", "mxfp4")]
    assert summary(made)[0] == "Every other recipe is worse than bf16 here (noise floor ±0.0123)."
    made["rows"] = made["rows"][:1]
    assert summary(made) == ["Only the baseline bf16 ran."]


# --- in a browser, off the network ---


#: works the controls as a reader would, and writes down what came of it
PROBE = """<script>
const pick = (id, value) => { document.getElementById(id).value = value;
  document.getElementById(id).dispatchEvent(new Event("change")); };
const seen = {};
const heat = document.getElementById("heat");
const cells = () => heat.data[0].text.map(row => [...row]);
pick("recipe", "mxfp4"); pick("measure", "sqnr_db"); seen.sqnr = cells();
pick("measure", "underflow"); seen.underflow = cells();
pick("measure", "saturate"); seen.saturate = cells();
document.querySelector('.keys button[data-recipe="mxfp8"]').click();
seen.lit = Object.fromEntries(document.getElementById("train").data.map(l => [l.name, l.opacity]));
const note = document.createElement("pre"); note.id = "seen"; note.textContent = JSON.stringify(seen);
document.body.append(note);
</script></body>"""


@needs_chromium
def test_controls_work_in_a_browser_without_network_or_error(tmp_path: Path) -> None:
    dom, console = browse(render(report()).replace("</body>", PROBE), tmp_path)
    assert console == []
    for plot in ("gap", "drift", "val", "train", "heat"):
        assert re.search(rf'<div id="{plot}" class="plot js-plotly-plot">.*?class="main-svg"', dom, re.DOTALL), plot
    assert dom.count("<details>") == 5  # one conversion table for each run that ended
    assert dom.count("<option") == 4 + 3  # recipes with narrowed layers, and measures
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom)
    assert found is not None
    seen = json.loads(found[1].replace("&lt;", "<"))
    assert seen["sqnr"] == [["18.5", "exact", "18.5", "18.5", "18.5", "18.5"]] * 2
    assert seen["underflow"] == [["3.10 %"] * 6] * 2
    assert seen["saturate"] == [["0"] * 6] * 2
    assert {name for name, opacity in seen["lit"].items() if opacity == 1} == {"mxfp8"}
    assert len(seen["lit"]) == 6


@needs_chromium
def test_the_check_of_the_console_sees_an_error(tmp_path: Path) -> None:
    _, console = browse("<!doctype html><script>nowhere();</script>", tmp_path)
    assert any("nowhere is not defined" in line for line in console)

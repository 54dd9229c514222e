"""The HTML page: escaped, self-contained, and alive in a browser."""

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import narrowcast as nc
from narrowcast.cli import run
from narrowcast.errors import InputError
from narrowcast.report import load, render, summary, write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def row(name: str, gap: float, verdict: str) -> dict:
    sites = [
        {"site": f"model.layers.{i}.mlp.up_proj", "operand": o, "sqnr_db": None if name == "fp32" else 20.0, "underflow": 0.1,
         "saturate": 0.0}
        for i in range(2) for o in nc.OPERANDS
    ]  # fmt: skip
    site = {"name": "lm_head", "kind": "Linear", "shape": [8, 4], "became": "wide", "backend": "torch", "kernel": "linear",
            "why": "kept <wide>"}  # fmt: skip
    numbers = dict.fromkeys(("model_bytes", "optimizer_bytes", "activation_bytes"), 10**6)
    times = dict.fromkeys(("step_seconds", "h100_step_seconds", "h100_8b_step_seconds"), 0.01)
    return {
        "recipe": name, "summary": f"<b>{name}</b> & more", "paper": "A & B <2024>", "diverged": None, "val_loss": 3.0 + gap,
        "gap": gap, "verdict": verdict, "bits_weights": 8.25, "bits_operands": 8.25, **numbers, **times, "h100_note": "bf16",
        "skipped_steps": 0, "train": [[1, 5.0], [2, 4.0]], "val": [[0, 6.0], [2, 3.0 + gap]], "sites": sites, "conversion": [site],
    }  # fmt: skip


@pytest.fixture
def report() -> dict:
    names = list(nc.recipes())
    rows = [row(n, 0.01 * (i - 1), "baseline" if n == "bf16" else "worse" if i > 6 else "not distinguishable")
            for i, n in enumerate(names)]  # fmt: skip
    rows[-1] |= {
        "diverged": "recipe int8-block diverged at step 3: weight w is not finite",
        "gap": None,
        "verdict": "diverged",
    }
    return {
        "kind": "narrowcast-compare", "version": 1, "command": "narrowcast compare --data '<script>alert(1)</script>'",
        "versions": {"torch": "2"}, "corpus": {"name": "<img src=x>", "train_tokens": 10}, "baseline": "bf16",
        "model": {"name": "tiny", "parameters": 10}, "training": {"steps": 2, "tokens_per_step": 5}, "rows": rows,
        "noise": {"seeds": [0, 1, 2], "losses": [3.0, 3.1, 2.9], "mean": 3.0, "std": 0.1, "half_width": 0.05,
                  "explanation": "seeds differ"},
        "gpu": {"name": "a GPU", "constants": [{"name": "bf16", "value": 1e12, "unit": "FLOP/s", "source": "a sheet"}]},
    }  # fmt: skip


def test_everything_from_outside_is_escaped_and_nothing_is_fetched(report):
    page = re.sub(r"<script>/\*\*.*?</script>", "", render(report), count=1, flags=re.S)
    for harmful in ("<script>alert", "<img src=x>", "<b>bf16</b> &", "kept <wide>"):
        assert harmful not in page
    assert "&lt;img src=x&gt;" in page
    own = page[page.index("</head>") :]
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", own)


def test_findings_name_the_narrowest_good_recipe_the_worse_and_the_diverged(report):
    sentences = summary(report)
    assert sentences[0].startswith("fp32 is the narrowest recipe that cannot be told from bf16 here")
    assert any("Worse than bf16" in s and "mxfp4 (+0.0700)" in s for s in sentences)
    assert sentences[-1] == "Recipe int8-block diverged at step 3: weight w is not finite."


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), ("{", "not JSON"), ("[]", "list"), ('{"kind": "x"}', "'x'"),
     ('{"kind": "narrowcast-compare", "version": 9}', "version 9")],
)  # fmt: skip
def test_what_is_no_report_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "report.json")


def test_the_verb_rebuilds_the_page(report, tmp_path, capsys):
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert run(["report", str(tmp_path)]) == 0
    assert "narrowest recipe" in capsys.readouterr().out
    assert (tmp_path / "report.html").stat().st_size > 1_000_000


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine; .ci/run installs it")
def test_a_browser_draws_it_without_an_error(report, tmp_path):
    page = write(copy.deepcopy(report), tmp_path)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
             "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
             f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--dump-dom"]  # fmt: skip
    done = subprocess.run([str(CHROMIUM), *flags, Path(page).as_uri()], capture_output=True, text=True, timeout=120)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    dom = done.stdout
    for plot in ("gap", "val", "train", "heat"):
        assert re.search(rf'<div id="{plot}" class="plot js-plotly-plot">.*?class="main-svg"', dom, re.S), plot
    assert dom.count("<details>") == len(report["rows"]) - 1
    assert all(f"<b>{name}</b>" in dom for name in nc.recipes())
    assert dom.count("<option") >= len(nc.recipes()) - 1 + 3

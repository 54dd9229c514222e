"""The HTML page: escaped, self-contained, and rebuilt by its verb."""

import json
import re
from pathlib import Path

import pytest
from tests.report.made_up import report

from narrowcast.cli import run
from narrowcast.report import render


def test_everything_from_outside_is_escaped_and_nothing_is_fetched() -> None:
    made = report()
    made["command"] = "narrowcast compare --data '<script>alert(1)</script>'"
    made["corpus"]["name"] = "<img src=x>"
    made["rows"][0]["summary"] = "<b>bf16</b> & more"
    page = re.sub(r"<script>/\*\*.*?</script>", "", render(made), count=1, flags=re.DOTALL)
    for harmful in ("<script>alert", "<img src=x>", "<b>bf16</b> &", "a < b"):
        assert harmful not in page
    assert "&lt;img src=x&gt;" in page
    own = page[page.index("</head>") :]
    assert not re.search(r"(src|href)=[\"']?(https?:)?//", own)


def test_the_verb_rebuilds_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text(json.dumps(report()))
    assert run(["report", str(tmp_path)]) == 0
    assert "narrowest recipe" in capsys.readouterr().out
    assert (tmp_path / "report.html").stat().st_size > 1_000_000

"""Checks, verdicts, and the verbs `studies` and `study`, on made-up studies."""

import json
from dataclasses import asdict, replace

import pytest
from tests.browser import browse, needs_chromium

import narrowcast.studies as registry
from narrowcast.cli import run
from narrowcast.cli.study import _command
from narrowcast.errors import InputError
from narrowcast.report.study import study_page
from narrowcast.studies import Check, Outcome, Setting, Study, carry_out, verdict
from narrowcast.studies.study import at_least, at_most, equal, within

PLOT = {"title": "curve", "x": "x", "y": "y", "log_y": True, "series": [{"name": "<b>", "x": [1, 2], "y": [1.0, 4.0]}]}
TABLE = {"title": "figures", "columns": ["name", "value"], "rows": [["<script>", 1.23456789], ["none", None]]}


def made_up(*checks: Check, needs: tuple[str, ...] = ()) -> Study:
    outcome = Outcome(checks or (at_least("gain, dB", 3.0, 2.0),), (TABLE,), (PLOT,), ("a note",))
    return Study(99, "made up", "Nobody 2026", "It is so.", "b", "t", "m", "e", lambda s: outcome, needs)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch):
    def register(found: Study) -> None:
        monkeypatch.setattr(registry, "_MODULES", {99: "made_up"})
        monkeypatch.setattr(registry, "import_module", lambda name: type("module", (), {"STUDY": found}))

    return register


@pytest.mark.parametrize(
    ("check", "holds"),
    [
        (at_least("a", 2.0, 2.0), True), (at_least("a", 1.9, 2.0), False), (at_most("a", 2.0, 2.0), True),
        (at_most("a", 2.1, 2.0), False), (within("a", 1.05, 1.0, 0.1), True), (within("a", 1.2, 1.0, 0.1), False),
        (equal("a", "x", "x"), True), (equal("a", 1.0, 2.0), False), (at_least("a", float("nan"), 0.0), False),
    ],
)  # fmt: skip
def test_a_check_holds_where_its_bound_does(check, holds):
    assert check.holds is holds


def test_nan_holds_for_nothing():
    with pytest.raises(InputError, match="NaN"):
        Check("a", float("nan"), "anything", True)


@pytest.mark.parametrize(
    ("claims", "golden", "word"),
    [
        ([True, True], True, "holds"), ([True, False], True, "holds in part"),
        ([False, False], True, "does not hold here"), ([True, True], False, "not valid"),
    ],
)  # fmt: skip
def test_the_verdict_follows_from_the_checks(claims, golden, word):
    checks = [Check("c", 1.0, "", holds) for holds in claims] + [Check("g", 1.0, "", golden, claim=False)]
    assert Outcome(tuple(checks)).verdict == word
    assert verdict([asdict(c) for c in checks]) == word


def test_an_outcome_without_a_claim_is_refused():
    with pytest.raises(InputError, match="at least one check of the claim"):
        Outcome((Check("g", 1.0, "", True, claim=False),))


def test_unknown_needs_are_refused():
    with pytest.raises(InputError, match="tpu"):
        made_up(needs=("tpu",))


def test_missing_data_are_named(tmp_path):
    with pytest.raises(InputError, match="NARROWCAST_DATA"):
        Setting().folder("mnist")
    with pytest.raises(InputError, match="mnist: no such folder"):
        Setting(data=tmp_path).folder("mnist")


def test_a_run_writes_result_and_page_and_is_not_overwritten(registered, tmp_path, capsys):
    registered(made_up())
    assert run(["study", "99", "--out", str(tmp_path), "--seed", "3"]) == 0
    assert "verdict: holds" in capsys.readouterr().out
    result = json.loads((tmp_path / "99.json").read_text())
    assert (result["verdict"], result["seed"], result["kind"]) == ("holds", 3, "narrowcast-study")
    page = (tmp_path / "99.html").read_text()
    assert "<script>1.2346" not in page and "&lt;script&gt;" in page and "1.2346" in page
    assert run(["study", "99", "--out", str(tmp_path)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run(["study", "99", "--out", str(tmp_path), "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "holds"


@pytest.mark.parametrize(
    ("checks", "status"),
    [((at_least("a", 1.0, 2.0),), 0), ((at_least("a", 3.0, 2.0), at_least("g", 1.0, 2.0, claim=False)), 1)],
)
def test_a_claim_may_fail_but_a_golden_check_may_not(registered, tmp_path, checks, status):
    registered(made_up(*checks))
    assert run(["study", "99", "--out", str(tmp_path)]) == status


def test_bad_input_is_one_line(registered, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    registered(made_up(needs=("cuda",)))
    for words, message in [
        (["study", "7"], "no study 7; known: 99"),
        (["study", "99", "--show"], "no committed result"),
        (["study", "99", "--out", str(tmp_path)], "needs a CUDA device"),
        (["study", "99", "--data", str(tmp_path / "no"), "--out", str(tmp_path)], "no such folder"),
    ]:
        assert run(words) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_the_list_says_what_was_not_run(registered, capsys):
    registered(made_up())
    assert run(["studies"]) == 0
    assert "not run yet" in capsys.readouterr().out
    assert run(["studies", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["studies"][0]["verdict"] is None


@needs_chromium
def test_a_browser_draws_the_page(tmp_path):
    dom, console = browse(study_page(carry_out(made_up(), Setting(), "narrowcast study 99")), tmp_path)
    assert not console
    assert 'class="plot js-plotly-plot"' in dom


def test_facts_hold_no_function():
    assert json.dumps(replace(made_up(), needs=("data",)).facts())


@pytest.mark.parametrize("script", ["/usr/bin/narrowcast", "src/narrowcast/__main__.py"])
def test_a_result_keeps_the_command_that_made_it(script, monkeypatch):
    monkeypatch.setattr("sys.argv", [script, "study", "21"])
    assert _command() == "narrowcast study 21"

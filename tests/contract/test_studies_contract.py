"""What every study promises: one table, every member, the same facts."""

import math
import shutil

import pytest

from narrowcast.studies import Setting, carry_out, committed, data_folder, numbers, study, verdict

every_study = pytest.mark.parametrize("number", numbers())


@every_study
def test_it_says_what_it_compares(number):
    found = study(number)
    assert found.number == number
    assert all(getattr(found, key).strip() for key in ("title", "paper", "claim", "baseline", "treatment", "measure"))


@every_study
def test_its_committed_result_is_its_own_and_its_verdict_follows_from_the_checks(number):
    result = committed(number)
    assert result is not None, f"./dev study {number}, then commit studies/results/{number:02d}.json"
    assert {key: result[key] for key in study(number).facts()} == study(number).facts()
    assert result["verdict"] == verdict(result["checks"])
    assert result["verdict"] != "not valid"
    assert not result["quick"]
    assert {"cpu", "torch", "date"} <= result["versions"].keys()
    assert result["command"].startswith("narrowcast study")


@every_study
def test_its_tables_and_plots_are_whole(number):
    result = committed(number)
    assert result is not None
    for table in result["tables"]:
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
    for plot in result["plots"]:
        for series in plot["series"]:
            assert len(series["x"]) == len(series["y"])
            assert all(math.isfinite(v) for v in series["y"] if v is not None)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, while it loads its compiler
@every_study
def test_it_runs(number):
    found = study(number)
    if "cuda" in found.needs:
        pytest.skip("needs a GPU")
    if "data" in found.needs and data_folder() is None:
        pytest.skip("NARROWCAST_DATA names no folder of real data")
    if "compiler" in found.needs and shutil.which("g++") is None:
        pytest.skip("no g++ on this machine; .ci/run installs it")
    result = carry_out(found, Setting(quick=True, data=data_folder()), "narrowcast study")
    assert [check["name"] for check in result["checks"]]

"""The runs of a study are train.py's; all studies run from end to end; tables of their numbers."""

import json
import runpy

import pytest
from tiny_runs import flags

from studies import __main__ as all_studies
from studies.runs import StudyConfig, run_studies, train_all
from studies.tables import over_seeds, remembered


def test_what_was_measured_is_remembered_until_the_run_goes_on(work, tmp_path):
    """Catches numbers of an earlier step, or of other texts."""
    run, calls = tmp_path / "run", []
    settings = [flag for flag in flags(work) if not flag.startswith("--out")]

    def make():
        calls.append(1)
        return {"x": len(calls)}

    with pytest.raises(ValueError, match="run.log") as stop:
        train_all({run: ["--foo"]}, 1)
    assert "\n" not in str(stop.value), "a run that fails is one line, which names its log"
    train_all({run: [*settings, "--max_steps=2"]}, 1)
    assert [remembered(run, "x", make, texts=n)["x"] for n in (8, 8, 9, 9)] == [1, 1, 2, 2]
    train_all({run: [*settings, "--max_steps=3"]}, 1)
    assert remembered(run, "x", make, texts=9)["x"] == 3
    for damaged in (json.dumps({"about": {"texts": 9, "step": 3}}), "{"):
        (run / "x.json").write_text(damaged)
        assert remembered(run, "x", make, texts=9)["x"] == len(calls) > 3


def test_mean_and_spread_over_seeds():
    """Catches a spread of all seeds (n, not n - 1), and a seed that has no such number."""
    found = over_seeds([{"a": 1.0, "b": [2, None], "c": None}, {"a": 3.0, "b": [4, 5], "c": None}])
    one, two = {"mean": 2.0, "spread": 2**0.5}, {"mean": 5, "spread": 0.0}
    assert found["a"] == pytest.approx(one) and found["b"][1] == two and found["c"] is None


@pytest.mark.parametrize("seeds", ["²", "1,²", "", "1,,2", "-1", "1 2", "1,\n2"])
def test_seeds_that_are_no_numbers_are_refused(seeds):
    """Catches digits that int() cannot read, and a name of a folder with a line end in it."""
    with pytest.raises(ValueError, match="seeds"):
        StudyConfig(seeds=seeds)
    assert StudyConfig(seeds=" 7, 1337").all_seeds() == [7, 1337]


def test_studies_say_what_will_run_and_how_long_it_took(tmp_path, monkeypatch, capsys):
    """Catches other settings that are found out after all work, and a time that is not kept."""

    def one(config, out):
        """First."""
        return [line for line in capsys.readouterr().out.splitlines() if "First" in line][0]

    monkeypatch.setattr("sys.argv", ["studies", f"--out={tmp_path}", "--seeds=1"])
    for wanted in ("not yet", " 0 s"):
        run_studies("", one)
        assert wanted in json.loads((tmp_path / "results.json").read_text())["one"]
    monkeypatch.setattr("sys.argv", ["studies", f"--out={tmp_path}", "--seeds=2"])
    with pytest.raises(SystemExit, match="one_asked.json.*seeds"):
        run_studies("", one)
    monkeypatch.setattr("sys.argv", ["studies", f"--out={tmp_path}", "--only=two"])
    with pytest.raises(SystemExit, match="only=two"):
        run_studies("", one)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # of runpy
@pytest.mark.parametrize("name", all_studies.STUDIES)
def test_each_study_has_a_command_of_its_own_and_all_settings(name, monkeypatch, capsys):
    """Catches a study that cannot be imported, or that nobody is told of."""
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f"studies.{name}", run_name="__main__")
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and f"python -m studies.{name}" in shown
    assert all(f"--{field} " in shown for field in ("out", "seeds", "jobs", "steps", "texts"))
    assert f"studies.{name} " in all_studies.__doc__


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_all_studies_run_and_leave_a_table_and_pictures(tmp_path, monkeypatch, capsys):
    """Catches pieces that do not fit together. A few steps do not show that thinking helps."""
    argv = ["studies", f"--out={tmp_path}", "--steps=2", "--seeds=1,2", "--texts=8"]
    out = tmp_path / "2_steps"  # no trial gets among the real runs
    monkeypatch.setattr("sys.argv", argv)
    runpy.run_module("studies", run_name="__main__")
    results = json.loads((out / "results.json").read_text())
    assert results.keys() == all_studies.STUDIES.keys()
    assert all((out / f"{name}.png").exists() for name in results)
    assert set(results["controls"]["full"]["answer_accuracy"]) == {"mean", "spread"}
    assert "±" in capsys.readouterr().out

"""Tables of the studies: means and spreads, and what was measured or written before stays."""

import json
from pathlib import Path

import pytest
from tiny_runs import flags

from studies.runs import train_all
from studies.tables import keep_results, over_seeds, remembered


def test_mean_and_spread_over_seeds():
    found = over_seeds([{"a": 1.0, "b": [2, None], "c": None}, {"a": 3.0, "b": [4, 5], "c": None}])
    one, two = {"mean": 2.0, "spread": 2**0.5}, {"mean": 5, "spread": 0.0}
    assert found["a"] == pytest.approx(one) and found["b"][1] == two and found["c"] is None


def test_what_was_measured_is_remembered_until_the_run_goes_on(work, tmp_path):
    run, calls = tmp_path / "run", []
    settings = [flag for flag in flags(work, "--max_steps=2") if not flag.startswith("--out")]
    train_all({run: settings}, 1)

    def make():
        calls.append(1)
        return {"x": len(calls)}

    assert [remembered(run, "x", make, texts=n)["x"] for n in (8, 8, 9, 9)] == [1, 1, 2, 2]
    train_all({run: [*settings, "--max_steps=3"]}, 1)
    assert remembered(run, "x", make, texts=9)["x"] == 3


def test_results_of_other_commands_stay(tmp_path):
    keep_results(tmp_path, "one", {"a": 1})
    keep_results(tmp_path, "two", {"b": 2})
    keep_results(tmp_path, "one", {"a": 3})
    assert json.loads(Path(tmp_path / "results.json").read_text()) == {
        "one": {"a": 3},
        "two": {"b": 2},
    }

"""The table of `make demo`."""

import json

import pytest
from tiny_runs import as_typed


def test_demo_gathers_its_runs(demo_runs, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo.py", f"--out={demo_runs}", "--texts=6", "--device=cpu"])
    as_typed("studies/demo.py")
    results = json.loads((demo_runs / "results.json").read_text())
    for row in ("base", "lm_control", "quiet_star"):
        assert {"answer_accuracy", "answer_nll", "other_nll"} <= results[row].keys()
    assert results["thought_len_sweep"].keys() == {"0", "2"} and results["seed"] == 1337
    assert {"base", "lm_control", "quiet_star", "thought_len_0", "evaluation", "total"} <= results["seconds"].keys()
    assert "lm_control" in capsys.readouterr().out


def test_demo_refuses_in_one_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["demo.py", "--out=nowhere"])
    with pytest.raises(SystemExit, match="is no run of train.py") as stop:
        as_typed("studies/demo.py")
    assert "\n" not in stop.value.code

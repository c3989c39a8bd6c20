"""The table of `make demo`, and the curves of runs over their training."""

import json

import pytest

import eval as evaluation
from studies import curve, demo


def test_demo_gathers_its_runs(demo_runs, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["demo.py", f"--out={demo_runs}", "--texts=6", "--device=cpu"])
    demo.main()
    results = json.loads((demo_runs / "results.json").read_text())
    for row in ("base", "lm_control", "quiet_star"):
        assert {"answer_accuracy", "answer_nll", "other_nll"} <= results[row].keys()
    assert results["thought_len_sweep"].keys() == {"0", "2"} and results["seed"] == 1337
    assert {"base", "lm_control", "quiet_star", "thought_len_0", "evaluation", "total"} <= results["seconds"].keys()
    assert "lm_control" in capsys.readouterr().out


def test_demo_and_curve_refuse_in_one_line(demo_runs, monkeypatch):
    for command, argument, expected in [
        (demo, "--out=nowhere", "is no run of train.py"),
        (curve, f"--runs={demo_runs / 'base'}", "was not measured yet: python eval.py gains --run="),
    ]:
        monkeypatch.setattr("sys.argv", ["command.py", argument])
        with pytest.raises(SystemExit, match=expected) as stop:
            command.main()
        assert "\n" not in stop.value.code


def test_a_curve_gathers_what_eval_found(demo_runs, tmp_path, monkeypatch, capsys):
    run = demo_runs / "quiet_star"
    monkeypatch.setattr("sys.argv", ["eval.py", f"--run={run}", "--texts=6", "--device=cpu"])
    evaluation.main()
    monkeypatch.setattr("sys.argv", ["curve.py", f"--runs={run}", f"--out={tmp_path}"])
    curve.main()
    found = json.loads((tmp_path / "curve.json").read_text())
    results = json.loads((run / "eval_step000002" / "results.json").read_text())
    seconds = json.loads((run / "log.jsonl").read_text().splitlines()[-1])["seconds"]
    assert found["columns"] == ["step", "seconds", "answer_accuracy"]
    assert found["quiet_star"] == [[2, seconds, results["quiet_star"]["answer_accuracy"]]]
    assert (tmp_path / "curve.png").exists() and "answer_accuracy" in capsys.readouterr().out

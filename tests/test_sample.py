"""sample.py, end to end on a tiny model."""

import pytest
from tiny_runs import ROOT, as_typed


def test_sample_shows_thoughts(demo_runs, monkeypatch, capsys):
    run = f"--run={demo_runs / 'quiet_star'}"
    monkeypatch.setattr(
        "sys.argv",
        ["sample.py", run, "--prompt=12=", "--show_thoughts", "--max_new_tokens=3", "--device=cpu"],
    )
    as_typed("sample.py")
    shown = capsys.readouterr().out
    assert shown.startswith("12=") and shown.count("\n") >= 5 and "thought before it" in shown
    argv = [
        "sample.py",
        run,
        "--prompt=12=",
        "--show_thoughts",
        "--max_new_tokens=3",
        "--device=cpu",
    ]
    monkeypatch.setattr("sys.argv", [*argv, "--price=1e9"])
    as_typed("sample.py")
    lines = [line.rstrip() for line in capsys.readouterr().out.split("\n")]
    assert (
        sum(
            line.startswith(" 0.00  '") and line.endswith("'") and line.count("'") == 2
            for line in lines
        )
        == 3
    )
    monkeypatch.setattr("sys.argv", ["sample.py", run, "--prompt=é", "--device=cpu"])
    with pytest.raises(SystemExit, match="not in this model's alphabet"):
        as_typed("sample.py")


def test_the_finished_model_that_ships_thinks_the_running_sums(monkeypatch, capsys):
    argv = [
        "sample.py",
        f"--run={ROOT / 'assets' / 'miniature'}",
        "--show_thoughts",
        "--max_new_tokens=1",
    ]
    monkeypatch.setattr("sys.argv", [*argv, "--prompt=\n3849=", "--device=cpu"])
    as_typed("sample.py")
    shown = capsys.readouterr().out
    assert shown.startswith("\n3849=4\n") and "'3154'" in shown

"""The runs of a study are train.py's, and it finds their checkpoints; all studies run from end to end."""

import json
import runpy
import subprocess
import sys

import pytest
import torch
from tiny_runs import flags

from studies import __main__ as all_studies
from studies.runs import HERE, over_training, tokens_read, train_all


def test_every_checkpoint_of_a_run_is_found_and_a_run_that_fails_is_one_line(work, tmp_path):
    settings = flags(work, "--max_steps=4", "--save_every=2", "--keep=9")
    settings = [flag for flag in settings if not flag.startswith("--out")]
    train_all({tmp_path / name: [*settings, f"--seed={i}"] for i, name in enumerate("ab")}, 2)
    for name in "ab":
        found = list(over_training(tmp_path / name, [*settings, f"--seed={'ab'.index(name)}"]))
        assert [step for step, _ in found] == [0, 2, 4]
        starts = [model.thought_tokens.start.detach() for _, model in found]
        assert not torch.equal(starts[0], starts[1]) and not torch.equal(starts[1], starts[2])
    with pytest.raises(
        ValueError, match=r"train.py ended with status 2 \(.*unrecognized arguments.*see "
    ) as stop:
        train_all({tmp_path / "c": ["--foo"]}, 1)
    assert "\n" not in str(stop.value)


def test_tokens_read_by_a_training_step():
    assert tokens_read(["--n_thoughts=2", "--thought_len=4", "--think_at=all"]) == 1 + 2 * 6
    flags = [
        "--n_thoughts=4",
        "--thought_len=2",
        "--n_true=3",
        "--think_at=hard",
        "--think_share=0.5",
    ]
    assert tokens_read(flags) == 1 + 0.5 * 4 * (4 + 2)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # of runpy
@pytest.mark.parametrize("name", all_studies.STUDIES)
def test_each_study_has_a_command_of_its_own_and_all_settings(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f"studies.{name}", run_name="__main__")
    shown = capsys.readouterr().out
    assert (
        stop.value.code == 0
        and f"python -m studies.{name}" in shown
        and f"studies.{name} " in all_studies.__doc__
    )
    assert all(f"--{field} " in shown for field in ("out", "seeds", "jobs", "steps", "texts"))


def test_an_unknown_study_is_refused_in_one_line():
    done = subprocess.run(
        [sys.executable, "-m", "studies", "sing"], cwd=HERE, capture_output=True, text=True
    )
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "unrecognized arguments: sing" in done.stderr
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", ["", "adaptive"])
def test_every_command_runs_and_leaves_a_table_and_a_picture(
    command, tmp_path_factory, monkeypatch, capsys
):
    """With a few steps: shows that all fits together, not that thinking helps."""
    folder = tmp_path_factory.getbasetemp() / "paper"
    argv = ["studies", f"--out={folder}", "--steps=2", "--seeds=1,2", "--texts=8"]
    out = folder / "2_steps"  # no trial gets among the real runs
    monkeypatch.setattr("sys.argv", argv)
    runpy.run_module(f"studies.{command}" if command else "studies", run_name="__main__")
    commands = [command] if command else list(all_studies.STUDIES)
    results = json.loads((out / "results.json").read_text())
    assert set(commands) <= set(results) and all(
        (out / f"{name}.png").exists() for name in commands
    )
    if not command:
        assert set(results["controls"]["full"]["answer_accuracy"]) == {"mean", "spread"}
        assert set(results["chatter"]["useful_share"]) == {"start", "end", "end_without_reinforce"}
        assert {"share_thinking", "gain_kept", "speedup"} <= set(results["adaptive"])
        assert "±" in capsys.readouterr().out

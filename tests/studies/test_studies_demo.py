"""The table of `make demo`, and the check of its base model."""

import json

import pytest
from tiny_runs import as_typed

import train as trainer
from studies import demo


def test_demo_teaches_and_compares(demo_runs, monkeypatch, capsys):
    """The runs are short ones that stand there already: only what is missing would be trained."""
    trained = []
    monkeypatch.setattr(demo, "train", lambda config, data: trained.append((config.seed, data)))
    (demo_runs / "without_reinforce").symlink_to(demo_runs / "quiet_star")
    demo.demo(demo.DemoConfig(out=str(demo_runs), texts=6, device="cpu", seed=5))
    results = json.loads((demo_runs / "results.json").read_text())
    for row in ("base", "lm_control", "without_reinforce", "quiet_star"):
        assert {"answer_accuracy", "answer_nll", "other_nll"} <= results[row].keys()
        assert row in results["seconds"]
    assert results["sampled_thoughts"].keys() == {"without_reinforce", "quiet_star"}
    assert (
        results["quiet_star"] == results["without_reinforce"]
        and results["seed"] == 5
        and trained == [(5, str(demo_runs / "data"))]
    )
    assert "lm_control" in capsys.readouterr().out


def test_demo_refuses_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["demo.py", f"--out={tmp_path / 'nowhere'}"])
    with pytest.raises(SystemExit, match="base is no run of train.py") as stop:
        as_typed("studies/demo.py")
    assert "\n" not in stop.value.code


def test_train_does_not_go_on_from_a_base_model_that_has_not_learned(
    demo_runs, monkeypatch, tmp_path
):
    """Nor if that base model was trained by an earlier command."""
    preset = tmp_path / "base.toml"
    preset.write_text(
        f'objective = "lm"\nout = "{demo_runs / "base"}"\ndata = "data/arithmetic"\nmax_steps = 2\n'
    )
    flags = [
        f"--base_preset={preset}",
        f"--init_from={demo_runs / 'base'}",
        f"--data={demo_runs / 'data'}",
    ]
    for _ in range(2):
        with pytest.raises(SystemExit, match="base has not learned its steps") as stop:
            trainer.run(
                *trainer.settings_from([*flags, f"--out={tmp_path / 'out'}", "--device=cpu"])
            )
        assert "\n" not in stop.value.code and not (tmp_path / "out").exists()

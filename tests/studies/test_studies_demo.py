"""The table of `make demo`, and the check of its base model."""

import json
import shutil

import pytest

from studies import demo


def test_demo_teaches_and_compares(demo_runs, tmp_path, monkeypatch, capsys):
    """Catches a row that is not measured. The runs are short ones that are there already."""
    trained = {}
    monkeypatch.setattr(demo, "train_all", lambda runs, jobs: trained.update(runs))
    out = shutil.copytree(demo_runs, tmp_path / "demo")
    (out / "quiet_star" / "log.jsonl").unlink()  # seconds are the checkpoint's
    (out / "without_reinforce").symlink_to(out / "quiet_star")
    demo.demo(demo.DemoConfig(out=str(out), texts=6, device="cpu", seed=5))
    results = json.loads((out / "results.json").read_text())
    for row in ("base", "lm_control", "without_reinforce", "quiet_star"):
        assert {"answer_accuracy", "answer_nll", "other_nll"} <= results[row].keys()
        assert row in results["seconds"]
    assert "quiet_star, thoughts sampled" in results and "base, thoughts sampled" not in results
    assert results["quiet_star"] == results["without_reinforce"] and results["seed"] == 5
    assert f"--data={demo_runs / 'data'}" in trained[out / "lm_control"]
    assert "lm_control" in capsys.readouterr().out


def test_a_text_without_answers_is_refused_before_anything_is_trained(work, monkeypatch):
    """Catches a table that misses its columns, after all work."""
    monkeypatch.setattr(demo, "train_all", lambda *_: pytest.fail("trained"))
    with pytest.raises(ValueError, match="answers"):
        demo.demo(demo.DemoConfig(out=str(work)))

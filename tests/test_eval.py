"""eval.py measures what it says it measures, and runs end to end on a tiny model."""

import json
import os
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_runs import ROOT

import eval as evaluation
from beyond.kinds import ThinkingConfig, thinking_model
from data.dataset import open_dataset
from lib.runs import load_run


@pytest.fixture
def measured(demo_runs):
    """The tiny run with a gain head and with a gate that is far from 0, spans, and `measure`."""
    data, run = open_dataset(demo_runs / "data", "val"), load_run(demo_runs / "quiet_star")[0]
    quiet = thinking_model(run.model, ThinkingConfig(thought_len=2, gain_head=True)).eval()
    torch.nn.init.normal_(quiet.mixing_head.last.weight, generator=torch.manual_seed(0))
    torch.nn.init.normal_(quiet.gain_head.last.weight)
    spans = evaluation.spread_spans(data.tokens, 32, 5)
    measure = partial(evaluation.measure, quiet, spans, data.meta)
    return quiet, spans, measure


def call(monkeypatch, *flags):
    monkeypatch.setattr("sys.argv", ["eval.py", *flags])
    evaluation.main()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_model_that_knows_what_comes_next_scores_one_and_its_opposite_nothing(sign):
    """Catches a count at the token that is read instead of the one that is predicted."""
    model = torch.nn.Embedding.from_pretrained(sign * 9 * torch.eye(16).roll(1, 1))  # t, then t + 1
    model.output = torch.nn.Linear(16, 16, bias=False)
    torch.nn.init.eye_(model.output.weight)
    spans = (np.arange(10)[:, None] + np.arange(33)) % 16
    measured = evaluation.measure(model, spans, {"answers": {"among": [3, 4, 5]}}, batch_size=3)
    answers = np.isin(spans[:, 1:], (3, 5))
    row = evaluation.summarize(*evaluation.predicted(measured), answers)
    assert row["answer_accuracy"]["mean"] == (sign > 0)
    assert (row["answer_nll"]["mean"] < 0.01) == (row["other_nll"]["mean"] < 0.01) == (sign > 0)


def test_an_answer_of_several_tokens_is_right_as_a_whole_and_its_nll_is_their_sum():
    """Catches answers counted token by token, and those that the span cuts: one before the first
    document that begins in it, and one of two tokens that may go on."""
    tokens = np.array([5, 6, 9, 5, 6, 1, 7, 8, 2, 4, 3, 5, 6])  # 9 ends a document
    answers = np.isin(tokens, (5, 6, 7, 8, 4))
    dataset = SimpleNamespace(tokens=tokens, answers=answers, meta={"document_end": 9})
    _, places = evaluation.held_out_spans(dataset, 12, 1)
    assert np.flatnonzero(places).tolist() == [2, 3, 5, 6, 8]
    row = evaluation.summarize(np.arange(12.0)[None], np.arange(12)[None] != 6, places)
    assert row["answer_accuracy"]["mean"] == pytest.approx(2 / 3)
    assert row["answer_nll"]["mean"] == pytest.approx((2 + 3 + 5 + 6 + 8) / 3)
    assert row["other_nll"]["mean"] == pytest.approx((0 + 1 + 4 + 7 + 9 + 10 + 11) / 7)


def test_what_is_measured_is_that_of_one_position_at_a_time(measured):
    """Catches what is read off at another position: each is made anew from its own prefix alone."""
    quiet, spans, measure = measured
    greedy = quiet.with_settings(n_thoughts=1, thought_temperature=0.0)
    result = measure(batch_size=1, shown=2)
    assert len(result.likeliest_mixed) == 2 and len(result.nll_mixed) == 5
    for i in (0, 7, 31):
        prefix = torch.from_numpy(spans[1:2, : i + 2])
        h_base, h_mixed, gate, thought = greedy.predict(prefix, positions=torch.tensor([[i]]))
        log_p = quiet.model.logits(h_mixed)[0, 0, 0, 0].log_softmax(-1)
        assert result.nll_mixed[1, i] == pytest.approx(-log_p[spans[1, i + 1]].item(), abs=1e-4)
        assert result.likeliest_mixed[1, i] == log_p.argmax()
        assert result.gate[1, i] == pytest.approx(gate.item(), abs=1e-5)
        assert result.thoughts[1, i].tolist() == thought[0, 0, 0].tolist()
        assert result.expected_gain[1, i] == pytest.approx(quiet.gain_head(h_base).item(), abs=1e-5)


def test_thoughts_that_are_given_are_read_and_a_gate_that_is_given_counts(measured):
    """Catches given thoughts that are not read, a gate that does not reach the prediction, or that
    stays in the model, and thoughts that are drawn otherwise in other batches."""
    measure = measured[2]
    own, again = (measure(batch_size=n, temperature=1.0) for n in (2, 5))
    assert (own.thoughts == again.thoughts).all()
    shut, half = (measure(gate=gate, temperature=1.0) for gate in (0.0, 0.5))
    np.testing.assert_allclose(shut.nll_mixed, own.nll_base, atol=1e-5)
    assert (half.gate == 0.5).all() and np.abs(half.nll_mixed - own.nll_mixed).max() > 1e-3
    read, greedy = measure(thoughts=own.thoughts), measure()
    np.testing.assert_allclose(read.nll_mixed, own.nll_mixed, atol=1e-5)
    assert np.abs(greedy.nll_mixed - own.nll_mixed).max() > 1e-3


def test_what_stands_behind_the_end_of_a_thought_is_not_among_what_was_thought(demo_runs):
    """Catches words on the page that nobody has read."""
    data, run = open_dataset(demo_runs / "data", "val"), load_run(demo_runs / "quiet_star")[0]
    how = ThinkingConfig(thought_len=4, thought_kind="ended", end_id=3)
    spans = evaluation.spread_spans(data.tokens, 32, 5)
    quiet = thinking_model(run.model, how).eval()
    found = evaluation.measure(quiet, spans, data.meta, temperature=1.0)
    assert (found.thoughts == -1).any()
    for thought in found.thoughts.reshape(-1, 4).tolist():
        own = thought[: thought.index(3) + 1] if 3 in thought else thought
        assert thought == own + [-1] * (4 - len(own))


def test_gains_leaves_a_table_pictures_a_page_and_results(demo_runs, monkeypatch, capsys, tmp_path):
    """Catches a step of the command that breaks, and a table that differs from results.json."""
    half = "--dtype=bfloat16", f"--out={tmp_path / 'half'}"
    call(monkeypatch, f"--run={demo_runs / 'quiet_star'}", "--texts=6", "--device=cpu", *half)
    assert (tmp_path / "half" / "results.json").exists() and capsys.readouterr()
    call(monkeypatch, f"--run={demo_runs / 'quiet_star'}", "--texts=6", "--device=cpu")
    out = demo_runs / "quiet_star" / "eval_step000002"
    for name in ("gains_text", "gains_by_difficulty"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    results = json.loads((out / "results.json").read_text())
    assert (out / "gains.html").read_text("utf-8").count("tabindex") == results["tokens"]
    table, saved = capsys.readouterr().out, results["gain"]["nats_per_token"]
    for name in ("base", "without_thoughts", "quiet_star"):
        assert f"{results[name]['answer_nll']['mean']:.4f} ±" in table
    assert np.exp(-saved) == pytest.approx(results["gain"]["perplexity_ratio"])


def test_results_of_another_question_are_not_overwritten(demo_runs, monkeypatch, tmp_path):
    """Catches results that are lost to fewer texts, or to another text under the same name."""
    text, out = tmp_path / "some.txt", tmp_path / "out"
    flags = f"--run={demo_runs / 'quiet_star'}", f"--text={text}", f"--out={out}", "--device=cpu"
    text.write_text("12=3\n>45=—49—9\n" * 20)
    call(monkeypatch, *flags, "--texts=8")
    before = (out / "results.json").read_bytes()
    for texts, content in ((2, "12=3\n>45=—49—9\n"), (8, ">45=—49—9\n12=3\n")):
        text.write_text(content * 20)
        with pytest.raises(SystemExit, match="results.json"):
            call(monkeypatch, *flags, f"--texts={texts}")
    assert (out / "results.json").read_bytes() == before


WRONG = {
    "sing": "'sing'",
    "--run={runs}/base": "--run",
    "--run={runs}/quiet_star --base=nowhere": "nowhere",
    "--run={runs}/quiet_star --span=100000": "--span",
}


@pytest.mark.parametrize("flags", WRONG)
def test_eval_refuses_in_one_line(demo_runs, monkeypatch, flags):
    """Catches a traceback, and a message that does not name what is wrong."""
    with pytest.raises(SystemExit, match=WRONG[flags]) as stop:
        call(monkeypatch, *flags.format(runs=demo_runs).split())
    assert "\n" not in stop.value.code


@pytest.mark.parametrize("name", ["write_page", "draw_text"])
def test_results_are_there_before_any_picture(name, demo_runs, monkeypatch, tmp_path, capsys):
    """Catches an hour of measuring that is lost to a font, or to a page on a full disk."""
    monkeypatch.setattr(evaluation, name, lambda *_: 1 / 0)
    flags = f"--run={demo_runs / 'quiet_star'}", f"--out={tmp_path}", "--texts=2", "--device=cpu"
    with pytest.raises(ZeroDivisionError):
        call(monkeypatch, *flags)
    results = json.loads((tmp_path / "results.json").read_text())
    assert f"{results['gain']['nats_per_token']:+.4f} ±" in capsys.readouterr().out


def test_measuring_in_a_hostile_environment(demo_runs, tmp_path):
    """Catches a notebook's MPLBACKEND, a matplotlibrc that wants TeX, and a home that is taken for
    a folder `~`. (Training: tests/lib/test_runs.py.)"""
    (tmp_path / "run").symlink_to(demo_runs / "quiet_star")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: TkAgg\nfont.size: 999\n")
    env = {**os.environ, "MATPLOTLIBRC": str(tmp_path), "HOME": str(tmp_path)}
    env["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    flags = ["--run=~/run", "--out=~/found", "--texts=4", "--device=cpu"]
    command = [sys.executable, str(ROOT / "eval.py"), *flags]
    subprocess.run(command, env=env, cwd=tmp_path, check=True, capture_output=True)
    found = tmp_path / "found"
    assert json.loads((found / "results.json").read_text())["tokens"] == 4 * 32
    assert (found / "gains_by_difficulty.png").stat().st_size < 2**17, "the font is 999 points wide"

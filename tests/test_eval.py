"""Evaluation counts what it says it counts, and runs end to end on a tiny model."""

import json

import numpy as np
import pytest
import torch

import eval as evaluation
from data.dataset import answers_by_rule, open_dataset
from lib.runs import load_run


class Oracle(torch.nn.Module):
    """A language model that knows the answers (or, its opposite, gives each answer the least chance)."""

    def __init__(self, spans, vocab_size, knows):
        super().__init__()
        self.output = torch.nn.Linear(vocab_size, vocab_size, bias=False)
        torch.nn.init.eye_(self.output.weight)
        self.next = {tuple(row[:-1].tolist()): row[1:] for row in torch.from_numpy(spans)}
        self.sign = 9.0 if knows else -9.0

    def forward(self, tokens):
        rows = torch.stack([self.next[tuple(row.tolist())] for row in tokens])
        return self.sign * torch.nn.functional.one_hot(rows, self.output.in_features).float()


def test_a_model_that_knows_the_answers_scores_one_and_its_opposite_nothing(demo_runs):
    """Counting the wrong place (the token read instead of the token predicted) would give neither."""
    data = open_dataset(demo_runs / "data", "val")
    spans, answers = evaluation.held_out_spans(data, 32, 10)
    assert answers.sum() >= 5
    for knows, score in ((True, 1.0), (False, 0.0)):
        measured = evaluation.measure(
            Oracle(spans, data.meta["vocab_size"], knows), spans, data.meta, batch_size=3
        )
        row = evaluation.summarize(measured.nll_base, measured.right_base, answers)
        assert (
            row["answer_accuracy"] == score
            and (row["answer_nll"] < 0.01) == knows
            and (row["other_nll"] < 0.01) == knows
        )


def test_answers_are_digits_right_after_the_equals_sign_of_whole_documents(demo_runs):
    """The answer of an explicit document is easy, and that of a document cut off by the span cannot be known."""
    data = open_dataset(demo_runs / "data", "val")
    tokenizer = load_run(demo_runs / "base")[1]
    text = "22=4\n12=3\n>45=—49—9\n83=1"
    spans = np.array([tokenizer.encode(text)])
    answers = answers_by_rule(spans[0], data.meta["answers"])[None]
    places = evaluation.answer_places(spans, answers, data.meta["document_end"])[0]
    assert [text[i + 1] for i in np.flatnonzero(places)] == ["3", "1"]
    assert not answers_by_rule(spans[0], None).any()


def test_an_answer_of_several_tokens_is_right_as_a_whole_and_its_nll_is_their_sum():
    """Two answers of two tokens and one of one; a third of two is cut by the span's end and does not count."""
    spans = np.array([[9, 9, 5, 6, 1, 7, 8, 2, 4, 3, 5, 6]])  # 9 ends a document
    answers = np.isin(spans, (5, 6, 7, 8, 4))
    places = evaluation.answer_places(spans, answers, 9)
    assert places[0].tolist() == [
        False,
        True,
        True,
        False,
        True,
        True,
        False,
        True,
        False,
        False,
        False,
    ]
    nll, right = np.arange(11.0)[None], np.ones((1, 11), bool)
    right[0, 5] = False
    row = evaluation.summarize(nll, right, places)
    assert row["answer_accuracy"] == pytest.approx(2 / 3)
    assert row["answer_nll"] == pytest.approx((1 + 2 + 4 + 5 + 7) / 3)
    assert row["other_nll"] == pytest.approx((0 + 3 + 6 + 8 + 9 + 10) / 6)


def test_measured_losses_are_those_of_one_position_at_a_time(demo_runs):
    """The mixed prediction of each token, made anew from its own prefix alone."""
    data = open_dataset(demo_runs / "data", "val")
    quiet = load_run(demo_runs / "quiet_star")[0]
    torch.nn.init.normal_(quiet.mixing_head.last.weight)
    spans = evaluation.spread_spans(data.tokens, 32, 2)
    measured = evaluation.measure(quiet, spans, data.meta)
    greedy = quiet.with_settings(n_thoughts=1, n_true=1, thought_temperature=0.0)
    for i in (0, 7, 31):
        prefix = torch.from_numpy(spans[1:2, : i + 1])
        thoughts = greedy.think(prefix, positions=torch.tensor([[i]]))
        log_p = quiet.model.logits(greedy.talk(thoughts.h_base, thoughts.h_thought)[0])[
            0, 0, 0, 0
        ].log_softmax(-1)
        assert measured.nll_mixed[1, i] == pytest.approx(-log_p[spans[1, i + 1]].item(), abs=1e-4)
        assert measured.thoughts[1, i].tolist() == thoughts.tokens[0, 0, 0].tolist()


def test_thoughts_that_are_given_are_read_and_a_gate_that_is_forced_counts(demo_runs):
    """A gate of 0 is the prediction without a thought, of 1 that of the thought alone; own thoughts given, the same."""
    data = open_dataset(demo_runs / "data", "val")
    quiet = load_run(demo_runs / "quiet_star")[0]
    torch.nn.init.normal_(quiet.mixing_head.last.weight)
    torch.nn.init.normal_(quiet.gain_head.last.weight)
    spans = evaluation.spread_spans(data.tokens, 32, 5)
    own = evaluation.measure(quiet, spans, data.meta, batch_size=2)
    again = evaluation.measure(quiet, spans, data.meta, batch_size=2, thoughts=own.thoughts)
    np.testing.assert_allclose(again.nll_mixed, own.nll_mixed, atol=1e-5)
    given = np.random.default_rng(0).integers(0, data.meta["vocab_size"], own.thoughts.shape)
    others = evaluation.measure(quiet, spans, data.meta, batch_size=2, thoughts=given)
    assert (others.thoughts == given).all() and np.abs(
        others.nll_mixed - own.nll_mixed
    ).max() > 1e-3
    shut, open_ = (evaluation.measure(quiet, spans, data.meta, gate=gate) for gate in (0.0, 1.0))
    np.testing.assert_allclose(shut.nll_mixed, own.nll_base, atol=1e-5)
    with torch.no_grad():
        tokens = torch.from_numpy(spans)
        alone = quiet.with_settings(n_thoughts=1, n_true=1, thought_temperature=0.0).think(tokens)
        log_p = quiet.model.logits(alone.h_thought[:, 0, :, 0]).log_softmax(-1)
        expected = quiet.gain_head(quiet.model(tokens[:, :-1]))
    wanted = -log_p.gather(-1, tokens[:, 1:, None])[..., 0]
    np.testing.assert_allclose(open_.nll_mixed, wanted, atol=1e-4)
    assert (shut.gate == 0).all() and (open_.gate == 1).all()
    np.testing.assert_allclose(own.expected_gain, expected, atol=1e-5)


def test_the_picture_shows_whole_documents_and_last_of_all_what_stays_wrong():
    """No document that a span's end cuts; of one that stays wrong, not twice; of a text without ends, whole spans."""
    spans = np.array([[9, 1, 2, 9, 3, 4, 9, 5], [6, 9, 1, 1, 9, 2, 9, 3]])
    wrong = np.zeros((2, 7), bool)
    wrong[0, 4] = True  # the 4
    shown = evaluation.pieces_to_show(spans, 0, wrong, 9, tokens=100)
    assert [spans[w, 1:][part].tolist() for w, part in shown] == [
        [1, 2, 9],
        [1, 1, 9],
        [2, 9],
        [3, 4, 9],
    ]
    assert len(evaluation.pieces_to_show(spans, 0, wrong, 9, tokens=6)) == 3, (
        "at most so many tokens, and the wrong ones"
    )
    for document_end in (None, 7):
        assert evaluation.pieces_to_show(spans, 1, wrong, document_end) == [(1, slice(None))]


def test_gains_makes_a_table_pictures_and_results(demo_runs, monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["eval.py", f"--run={demo_runs / 'quiet_star'}", "--texts=6", "--device=cpu"]
    )
    evaluation.main()
    out = demo_runs / "quiet_star" / "eval_step000002"
    results = json.loads((out / "results.json").read_text())
    assert {"base", "without_thoughts", "quiet_star", "gain", "gate"} <= results.keys()
    assert len(results["gain"]["by_difficulty"]) == 10
    assert results["base"]["answer_nll"] != results["quiet_star"]["answer_nll"]
    for name in ("gains_text", "gains_by_difficulty", "curves"):
        assert (out / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    table = capsys.readouterr().out
    assert f"{results['quiet_star']['answer_nll']:.4f} ±" in table and str(out) in table


def test_eval_refuses_in_one_line(demo_runs, monkeypatch):
    for arguments, expected in [
        (["sing"], "no command 'sing'"),
        ([f"--run={demo_runs / 'base'}"], "is a plain language model"),
        (["--run=nowhere"], "there is no "),
    ]:
        monkeypatch.setattr("sys.argv", ["eval.py", *arguments])
        with pytest.raises(SystemExit, match=expected) as stop:
            evaluation.main()
        assert "\n" not in stop.value.code

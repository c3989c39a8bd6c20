"""What is measured of thoughts: controls, chatter."""

from types import SimpleNamespace

import numpy as np
from naive import tiny

from data.arithmetic.prepare import ALPHABET
from lib.tokenizer import CharTokenizer
from studies import chatter
from studies.controls import of_other_positions


def test_thoughts_of_other_positions_are_all_there_and_none_at_its_own():
    """Catches a control in which some thoughts stay where they were."""
    thoughts = np.arange(3 * 5 * 2).reshape(3, 5, 2)
    answers = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=bool)
    moved = of_other_positions(thoughts, answers)
    for some in (answers, ~answers):
        assert sorted(moved[some].tolist()) == sorted(thoughts[some].tolist())
    assert (moved != thoughts).all() and (moved[..., 1] - moved[..., 0] == 1).all()


def test_a_thought_is_useful_if_it_begins_with_the_steps(monkeypatch):
    """Catches one wrong step that passes. Of three steps and a dash, of four, wrong, and idle."""
    tokenizer = CharTokenizer(ALPHABET)
    questions, thoughts = ("384", "3849", "1234", "9999"), ("315—", "3154", "1371", "hmmm")
    spans = np.array([tokenizer.encode(f"0=0\n{q}="[-6:] + "4") for q in questions])
    answers = np.zeros((4, 6), bool)
    answers[:, 5] = True
    ids = np.zeros((4, 6, 4), int)
    ids[:, 5] = [tokenizer.encode(thought) for thought in thoughts]
    right = np.array([[True, False] * 3] * 4)
    found = SimpleNamespace(thoughts=ids, right_mixed=right, gate=np.where(answers, 0.5, 9.0))
    asked = []
    monkeypatch.setattr(chatter, "measure", lambda *args, **how: asked.append(how) or found)
    monkeypatch.setattr(chatter, "load_run", lambda run: (tiny(), tokenizer))
    useful = chatter.useful_thoughts("run", (spans, answers, {}))
    assert asked == [{"temperature": 1.0}]
    assert useful == {"useful_share": 0.5, "answer_accuracy": 0.0, "gate": 0.5}

"""Studies of what thoughts say count what they say they count."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data.arithmetic.prepare import ALPHABET, ArithmeticConfig, document, running_sums
from data.dataset import open_dataset, write_dataset
from lib.tokenizer import CharTokenizer
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR, QuietSTaRConfig
from studies.adaptive import gain_kept
from studies.controls import of_other_positions
from studies.thoughts import quiet_questions, useful_thoughts
from studies.who import corrupt, corrupted, thoughts_and_answers


@pytest.fixture
def lines(tmp_path):
    tokenizer, rng, config = (
        CharTokenizer(ALPHABET),
        random.Random(0),
        ArithmeticConfig(min_digits=3),
    )
    text = "".join(document(config, rng) for _ in range(200))
    write_dataset(
        tmp_path / "d", {"train": [0], "val": tokenizer.encode(text)}, tokenizer, tokenizer.id["\n"]
    )
    return text, open_dataset(tmp_path / "d", "val"), tokenizer


def test_quiet_questions_are_the_lines_whose_steps_are_left_out(lines):
    text, dataset, tokenizer = lines
    rows, questions = quiet_questions(dataset, tokenizer, count=30)
    steps = [running_sums(question) for question in questions]
    quiet = [line for line in text.split("\n") if line and "—" not in line]
    assert rows.shape == (30, 41) and len(steps) == 30
    read = [tokenizer.decode(row.tolist()) for row in rows]
    assert all(
        row in text and row[-2] == "=" and row[-1] == step[-1]
        for row, step in zip(read, steps, strict=True)
    )
    found = [row.split("\n")[-1] for row in read]
    at = next(i for i, line in enumerate(quiet) if line.endswith(found[0]))
    assert all(line.endswith(row) for line, row in zip(quiet[at : at + 30], found, strict=True)), (
        "none is left out"
    )
    assert questions == [line.split("=")[0] for line in quiet[at : at + 30]]
    for question, written in zip(questions, steps, strict=True):
        assert written == "".join(
            str(sum(map(int, question[: k + 1])) % 10) for k in range(len(question))
        )


def test_a_thought_is_useful_if_it_begins_with_the_steps(lines, monkeypatch):
    """Of three steps and a dash, and of four; not with one step wrong, nor if it is idle."""
    _, dataset, tokenizer = lines
    rows, questions = quiet_questions(dataset, tokenizer, count=4)
    steps = [running_sums(question) for question in questions]
    wrong = steps[2][0] + str((int(steps[2][1]) + 1) % 10) + steps[2][2:]
    said = [
        (steps[0] + "—")[:4],
        steps[1][:3] + ("—" if len(steps[1]) == 3 else steps[1][3]),
        (wrong + "—")[:4],
        "hmmm",
    ]
    given = torch.tensor([tokenizer.encode(x) for x in said]).view(4, 1, 1, 4).expand(-1, 2, -1, -1)
    shape = ModelConfig(
        dim=16,
        n_layers=1,
        head_dim=8,
        hidden_dim=16,
        n_heads=2,
        n_kv_heads=1,
        vocab_size=len(ALPHABET),
    )
    model, think = QuietSTaR(Transformer(shape), QuietSTaRConfig(thought_len=4)), QuietSTaR.think
    places = []

    def rigged(self, tokens, thoughts, positions, noise):
        places.append(
            (positions.unique().tolist(), tuple(noise.shape), self.config.thought_temperature)
        )
        return think(self, tokens, given, positions)

    monkeypatch.setattr(QuietSTaR, "think", rigged)
    measured = useful_thoughts(model, tokenizer, rows, questions, n_thoughts=2)
    assert places == [([39], (4, 2, 1, 4), 1.0)]
    assert (
        measured["useful_share"] == 0.5
        and measured["gate"] == 0
        and 0 <= measured["answer_accuracy"] <= 1
    )


class Reader(torch.nn.Module):
    """In a thinking model's place: answers with the last digit of its thought, or else with 7."""

    def __init__(self, tokenizer, thoughts=None):
        super().__init__()
        self.tokenizer, self.own, self.model, self.config = (
            tokenizer,
            thoughts,
            self,
            QuietSTaRConfig(),
        )

    def with_settings(self, **changes):
        return self

    def think(self, rows, thoughts, positions, noise):
        self.read = self.own if thoughts is None else thoughts
        return SimpleNamespace(tokens=self.read, h_base=None, h_thought=None)

    def talk(self, h_base, h_thought):
        shape = self.read.shape[:3]
        return torch.zeros(*shape, 1), torch.full((*shape, 1), 0.5)

    def logits(self, hidden):
        said = [
            [self.tokenizer.decode(thought[0].tolist()) for thought in row] for row in self.read
        ]
        last = [[[c for c in "7" + thought if c.isdigit()][-1] for thought in row] for row in said]
        likeliest = torch.tensor([[self.tokenizer.id[c] for c in row] for row in last])
        return torch.nn.functional.one_hot(likeliest, len(ALPHABET))[:, :, None, None]


def test_corrupted_steps_differ_in_one_digit_and_what_follows_from_it():
    rng = np.random.default_rng(0)
    for question, place in (("3849", -1), ("3849", -2), ("3849", -3), ("104", -3)):
        steps = running_sums(question)
        alone, carried = corrupted(question, place, rng)
        i = len(steps) + place
        assert [k for k in range(len(steps)) if alone[k] != steps[k]] == [i]
        assert carried[: i + 1] == alone[: i + 1] and len(carried) == len(steps)
        for k in range(i + 1, len(steps)):
            assert int(carried[k]) == (int(carried[k - 1]) + int(question[k])) % 10


def test_answers_that_are_read_off_the_thought_follow_it(lines):
    _, dataset, tokenizer = lines
    rows, questions = quiet_questions(dataset, tokenizer, count=40)
    model = Reader(tokenizer)
    last = corrupt(model, tokenizer, rows, questions, -1)
    assert list(last.values()) == [
        0.0,
        1.0,
        1.0,
    ]  # neither stays nor differs from what the digit leads to
    before = corrupt(model, tokenizer, rows, questions, -2)
    assert list(before.values()) == [1.0, 0.0, 1.0]


def test_right_and_wrong_thoughts_are_told_apart_and_what_is_not_there_is_none(lines):
    _, dataset, tokenizer = lines
    rows, questions = quiet_questions(dataset, tokenizer, count=20)
    right = [(running_sums(question) + "—")[:4] for question in questions]
    wrong = ["hhhh" if i % 4 else thought for i, thought in enumerate(right)]  # a quarter is right
    answers = [int(running_sums(question)[-1]) for question in questions]
    sevens = np.mean([answer == 7 for i, answer in enumerate(answers) if i % 4])
    for said, wanted in ((right, (1.0, 1.0, None)), (wrong, (0.25, 1.0, pytest.approx(sevens)))):
        thoughts = torch.tensor([tokenizer.encode(thought) for thought in said])[:, None, None]
        found = thoughts_and_answers(
            Reader(tokenizer, thoughts), tokenizer, rows, questions, 0.0, 1
        )
        assert tuple(found.values()) == wanted


def test_thoughts_of_other_positions_are_all_there_and_none_at_its_own():
    thoughts = np.arange(3 * 5 * 2).reshape(3, 5, 2)
    answers = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=bool)
    moved = of_other_positions(thoughts, answers)
    for some in (answers, ~answers):
        assert sorted(moved[some].tolist()) == sorted(thoughts[some].tolist())
    assert (moved != thoughts).all() and (moved[..., 1] - moved[..., 0] == 1).all()


def test_the_gain_that_is_kept_counts_answers_alone():
    found = SimpleNamespace(
        right_base=np.array([[True, False, False, False], [False, True, False, False]]),
        right_mixed=np.array([[True, True, True, False], [True, True, True, False]]),
    )
    answers = np.array([[True, True, True, False], [True, False, False, True]])
    think = np.array([[False, True, False, True], [True, True, True, True]])
    assert gain_kept(np.full((2, 4), True), found, answers) == 1
    assert gain_kept(np.full((2, 4), False), found, answers) == 0
    assert gain_kept(think, found, answers) == pytest.approx(
        2 / 3
    )  # one of three is not thought about
    assert gain_kept(think, found, answers, slice(1, None)) == 1
    assert (
        gain_kept(think, SimpleNamespace(right_base=answers, right_mixed=answers), answers) is None
    )

"""paper.py counts what it says it counts; its runs are train.py's, and it finds their checkpoints."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_train import flags, work  # noqa: F401

import paper
from data.arithmetic.prepare import ALPHABET, ArithmeticConfig, document
from data.dataset import open_dataset, write_dataset
from data.tokenizer import CharTokenizer
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR, QuietSTaRConfig


@pytest.fixture
def lines(tmp_path):
    import random

    tokenizer, rng, config = CharTokenizer(ALPHABET), random.Random(0), ArithmeticConfig(chatter=0.5)
    text = "".join(document(config, rng) for _ in range(200))
    write_dataset(tmp_path / "d", {"train": [0], "val": tokenizer.encode(text)}, tokenizer, tokenizer.id["\n"])
    return text, open_dataset(tmp_path / "d", "val"), tokenizer


def test_quiet_questions_are_the_lines_whose_steps_are_left_out(lines):
    text, dataset, tokenizer = lines
    rows, questions = paper.quiet_questions(dataset, tokenizer, count=30)
    steps = [paper.steps_of(question) for question in questions]
    quiet = [line for line in text.split("\n") if line and "—" not in line]
    assert rows.shape == (30, 41) and len(steps) == 30
    read = [tokenizer.decode(row.tolist()) for row in rows]
    assert all(row in text and row[-2] == "=" and row[-1] == step[-1] for row, step in zip(read, steps, strict=True))
    found = [row.split("\n")[-1] for row in read]
    at = next(i for i, line in enumerate(quiet) if line.endswith(found[0]))
    assert all(line.endswith(row) for line, row in zip(quiet[at : at + 30], found, strict=True)), "none is left out"
    assert questions == [line.split("=")[0] for line in quiet[at : at + 30]]
    for question, written in zip(questions, steps, strict=True):
        value, wanted = int(question[0]), ""
        for k in range(1, len(question), 2):  # one operation after the other
            value = eval(f"{value}{question[k : k + 2]}") % 10
            wanted += str(value)
        assert written == wanted


def test_a_thought_is_useful_if_it_begins_with_the_steps(lines, monkeypatch):
    """Of three steps and a dash, and of four; not with one step wrong, nor with letters."""
    _, dataset, tokenizer = lines
    rows, questions = paper.quiet_questions(dataset, tokenizer, count=4)
    steps = [paper.steps_of(question) for question in questions]
    wrong = steps[2][0] + str((int(steps[2][1]) + 1) % 10) + steps[2][2:]
    said = [
        (steps[0] + "—")[:4],
        steps[1][:3] + ("—" if len(steps[1]) == 3 else steps[1][3]),
        (wrong + "—")[:4],
        "kqbe",
    ]
    given = torch.tensor([tokenizer.encode(x) for x in said]).view(4, 1, 1, 4).expand(-1, 2, -1, -1)
    shape = ModelConfig(dim=16, n_layers=1, head_dim=8, hidden_dim=16, n_heads=2, n_kv_heads=1, vocab_size=42)
    model, think = QuietSTaR(Transformer(shape), QuietSTaRConfig(thought_len=4)), QuietSTaR.think
    places = []

    def rigged(self, tokens, thoughts, positions, noise):
        places.append((positions.unique().tolist(), tuple(noise.shape), self.config.thought_temperature))
        return think(self, tokens, given, positions)

    monkeypatch.setattr(QuietSTaR, "think", rigged)
    measured = paper.useful_thoughts(model, tokenizer, rows, questions, n_thoughts=2)
    assert places == [([39], (4, 2, 1, 4), 1.0)]
    assert measured["useful_share"] == 0.5 and measured["gate"] == 0 and 0 <= measured["answer_accuracy"] <= 1


def test_every_checkpoint_of_a_run_is_found_and_a_run_that_fails_is_one_line(work, tmp_path):  # noqa: F811
    settings = flags(work, "--max_steps=4", "--save_every=2", "--keep=9")
    settings = [flag for flag in settings if not flag.startswith("--out")]
    paper.train_all({tmp_path / name: [*settings, f"--seed={i}"] for i, name in enumerate("ab")}, 2)
    for name in "ab":
        found = list(paper.over_training(tmp_path / name, [*settings, f"--seed={'ab'.index(name)}"]))
        assert [step for step, _ in found] == [0, 2, 4]
        starts = [model.thought_tokens.start.detach() for _, model in found]
        assert not torch.equal(starts[0], starts[1]) and not torch.equal(starts[1], starts[2])
    with pytest.raises(ValueError, match=r"train.py ended with status 2 \(.*unrecognized arguments.*see ") as stop:
        paper.train_all({tmp_path / "c": ["--foo"]}, 1)
    assert "\n" not in str(stop.value)


class Reader(torch.nn.Module):
    """In a thinking model's place: answers with the last digit of its thought, or else with 7."""

    def __init__(self, tokenizer, thoughts=None):
        super().__init__()
        self.tokenizer, self.own, self.model, self.config = tokenizer, thoughts, self, QuietSTaRConfig()

    def with_settings(self, **changes):
        return self

    def think(self, rows, thoughts, positions, noise):
        self.read = self.own if thoughts is None else thoughts
        return SimpleNamespace(tokens=self.read)

    def talk(self, found):
        shape = self.read.shape[:3]
        return torch.zeros(*shape, 1), torch.full((*shape, 1), 0.5)

    def logits(self, hidden):
        said = [[self.tokenizer.decode(thought[0].tolist()) for thought in row] for row in self.read]
        last = [[[c for c in "7" + thought if c.isdigit()][-1] for thought in row] for row in said]
        likeliest = torch.tensor([[self.tokenizer.id[c] for c in row] for row in last])
        return torch.nn.functional.one_hot(likeliest, 42)[:, :, None, None]


def test_corrupted_steps_differ_in_one_digit_and_what_follows_from_it():
    rng = np.random.default_rng(0)
    for question, place in (("3+7*4-2*9", -1), ("3+7*4-2*9", -2), ("3+7*4-2*9", -3), ("1*0+4*2", -3)):
        steps = paper.steps_of(question)
        alone, carried = paper.corrupted(question, place, rng)
        i = len(steps) + place
        assert [k for k in range(len(steps)) if alone[k] != steps[k]] == [i] and len(carried) == len(steps)
        assert carried[: i + 1] == alone[: i + 1]
        value = int(alone[i])
        for k in range(i + 1, len(steps)):  # one operation after the other
            value = eval(f"{value}{question[1 + 2 * k]}{question[2 + 2 * k]}") % 10
            assert int(carried[k]) == value


def test_answers_that_are_read_off_the_thought_follow_it(lines):
    _, dataset, tokenizer = lines
    rows, questions = paper.quiet_questions(dataset, tokenizer, count=40)
    model = Reader(tokenizer)
    last = paper.corrupt(model, tokenizer, rows, questions, -1)
    assert list(last.values()) == [0.0, 1.0, 1.0]  # neither stays nor differs from what the digit leads to
    before = paper.corrupt(model, tokenizer, rows, questions, -2)
    assert list(before.values()) == [1.0, 0.0, 1.0], "digits that lead to the same answer (times 0) are left out"


def test_right_and_wrong_thoughts_are_told_apart_and_what_is_not_there_is_none(lines):
    _, dataset, tokenizer = lines
    rows, questions = paper.quiet_questions(dataset, tokenizer, count=20)
    right = [(paper.steps_of(question) + "—")[:4] for question in questions]
    wrong = ["abcd" if i % 4 else thought for i, thought in enumerate(right)]  # a quarter is right
    answers = [int(paper.steps_of(question)[-1]) for question in questions]
    sevens = np.mean([answer == 7 for i, answer in enumerate(answers) if i % 4])
    for said, wanted in ((right, (1.0, 1.0, None)), (wrong, (0.25, 1.0, pytest.approx(sevens)))):
        thoughts = torch.tensor([tokenizer.encode(thought) for thought in said])[:, None, None]
        found = paper.thoughts_and_answers(Reader(tokenizer, thoughts), tokenizer, rows, questions, 0.0, 1)
        assert tuple(found.values()) == wanted


def test_thoughts_of_other_positions_are_all_there_and_none_at_its_own():
    thoughts = np.arange(3 * 5 * 2).reshape(3, 5, 2)
    answers = np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=bool)
    moved = paper.of_other_positions(thoughts, answers)
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
    assert paper.gain_kept(np.full((2, 4), True), found, answers) == 1
    assert paper.gain_kept(np.full((2, 4), False), found, answers) == 0
    assert paper.gain_kept(think, found, answers) == pytest.approx(2 / 3)  # one of three is not thought about
    assert paper.gain_kept(think, found, answers, slice(1, None)) == 1
    assert paper.gain_kept(think, SimpleNamespace(right_base=answers, right_mixed=answers), answers) is None


def test_tokens_read_by_a_training_step():
    assert paper.tokens_read(["--n_thoughts=2", "--thought_len=4", "--think_at=all"]) == 1 + 2 * 6
    flags = ["--n_thoughts=4", "--thought_len=2", "--n_true=3", "--think_at=hard", "--think_share=0.5"]
    assert paper.tokens_read(flags) == 1 + 0.5 * 4 * (4 + 2)


def test_mean_and_spread_over_seeds():
    found = paper.over_seeds([{"a": 1.0, "b": [2, None], "c": None}, {"a": 3.0, "b": [4, 5], "c": None}])
    one, two = {"mean": 2.0, "spread": 2**0.5}, {"mean": 5, "spread": 0.0}
    assert found["a"] == pytest.approx(one) and found["b"][1] == two and found["c"] is None


def test_what_was_measured_is_remembered_until_the_run_goes_on(work, tmp_path):  # noqa: F811
    run, calls = tmp_path / "run", []
    settings = [flag for flag in flags(work, "--max_steps=2") if not flag.startswith("--out")]
    paper.train_all({run: settings}, 1)

    def make():
        calls.append(1)
        return {"x": len(calls)}

    assert [paper.remembered(run, "x", make, texts=n)["x"] for n in (8, 8, 9, 9)] == [1, 1, 2, 2]
    paper.train_all({run: [*settings, "--max_steps=3"]}, 1)
    assert paper.remembered(run, "x", make, texts=9)["x"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("command", ["", "adaptive"])
def test_every_command_runs_and_leaves_a_table_and_a_picture(command, tmp_path_factory, monkeypatch, capsys):
    """With a few steps: shows that all fits together, not that thinking helps."""
    folder = tmp_path_factory.getbasetemp() / "paper"
    argv = ["paper.py", *([command] if command else []), f"--out={folder}", "--steps=2", "--seeds=1,2", "--texts=8"]
    out = folder / "2_steps"  # no trial gets among the real runs
    monkeypatch.setattr("sys.argv", argv)
    paper.main()
    commands = [command] if command else list(paper.COMMANDS)
    results = json.loads((out / "results.json").read_text())
    assert set(commands) <= set(results) and all((out / f"{name}.png").exists() for name in commands)
    if not command:
        assert set(results["controls"]["full"]["answer_accuracy"]) == {"mean", "spread"}
        assert set(results["chatter"]["useful_share"]) == {"start", "end", "end_without_reinforce"}
        assert {"share_thinking", "gain_kept", "speedup"} <= set(results["adaptive"])
        assert {"with_thoughts", "without_thoughts"} <= set(results["curriculum"])
        assert "±" in capsys.readouterr().out


def test_results_of_other_commands_stay(tmp_path):
    paper.keep_results(tmp_path, "one", {"a": 1})
    paper.keep_results(tmp_path, "two", {"b": 2})
    paper.keep_results(tmp_path, "one", {"a": 3})
    assert json.loads(Path(tmp_path / "results.json").read_text()) == {"one": {"a": 3}, "two": {"b": 2}}

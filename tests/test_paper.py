"""paper.py counts what it says it counts; its runs are train.py's, and it finds their checkpoints."""

import json
from pathlib import Path

import pytest
import torch
from test_train import flags, work  # noqa: F401

import paper
from data.arithmetic.prepare import ALPHABET, ArithmeticConfig, document, running_results
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
    rows, steps = paper.quiet_questions(dataset, tokenizer, count=30)
    quiet = [line for line in text.split("\n") if line and "—" not in line]
    assert rows.shape == (30, 41) and len(steps) == 30
    read = [tokenizer.decode(row.tolist()) for row in rows]
    assert all(row in text and row[-2] == "=" and row[-1] == step[-1] for row, step in zip(read, steps, strict=True))
    found = [row.split("\n")[-1] for row in read]
    at = next(i for i, line in enumerate(quiet) if line.endswith(found[0]))
    assert all(line.endswith(row) for line, row in zip(quiet[at : at + 30], found, strict=True)), "none is left out"
    wanted = ["".join(map(str, running_results(line.split("=")[0]))) for line in quiet[at : at + 30]]
    assert steps == wanted


def test_a_thought_is_useful_if_it_begins_with_the_steps(lines, monkeypatch):
    """Of three steps and a dash, and of four; not with one step wrong, nor with letters."""
    _, dataset, tokenizer = lines
    rows, steps = paper.quiet_questions(dataset, tokenizer, count=4)
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

    def rigged(self, tokens, positions, noise):
        places.append((positions.unique().tolist(), tuple(noise.shape), self.config.thought_temperature))
        return think(self, tokens, given, positions)

    monkeypatch.setattr(QuietSTaR, "think", rigged)
    measured = paper.useful_thoughts(model, tokenizer, rows, steps, n_thoughts=2)
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


def test_results_of_other_commands_stay(tmp_path):
    paper.keep_results(tmp_path, "one", {"a": 1})
    paper.keep_results(tmp_path, "two", {"b": 2})
    paper.keep_results(tmp_path, "one", {"a": 3})
    assert json.loads(Path(tmp_path / "results.json").read_text()) == {"one": {"a": 3}, "two": {"b": 2}}

"""The miniature's text, and whether a model has learned its steps."""

import random

import pytest
import torch
from tiny_runs import as_typed

from data.arithmetic import check, prepare
from data.dataset import open_dataset
from lib.runs import load_run
from lib.tokenizer import from_json


def lines(**settings):
    config, rng = prepare.ArithmeticConfig(**settings), random.Random(0)
    return [prepare.document(config, rng) for _ in range(400)]


def share(test, texts):
    return sum(map(test, texts)) / len(texts)


def test_documents_are_worked_idle_or_quiet_in_the_shares_asked_for():
    """Catches steps that are no sums modulo 10, an aside whose length tells what it is, and a flag
    without effect."""
    assert prepare.running_sums("3849") == "3154" and prepare.running_sums("99999") == "98765"
    for line in lines(explicit=1.0, chatter=0.0, double=0.3):
        question, rest = line.split("=")
        steps = prepare.running_sums(question[1:])
        assert question[0] == ">" and rest.replace("——", "—") == f"—{steps}—{steps[-1]}\n"
    for line in lines(explicit=0.0, min_digits=2, max_digits=3):
        question, rest = line.split("=")
        assert int(rest) == sum(map(int, question)) % 10 and len(question) in (2, 3)
    for line in lines(explicit=1.0, chatter=1.0, min_digits=1):
        assert line.split("—")[1] == "hmmm"[: len(line.split("=")[0]) - 1]
    assert 0.2 < share(lambda line: "——" in line, lines(explicit=1.0, double=0.3)) < 0.4
    assert not any(">" in line for line in lines(explicit=1.0, mark=False))
    asides = [line.split("—")[1] for line in lines() if "—" in line]
    assert 0.45 < len(asides) / 400 < 0.55 and 0.5 < share(str.isalpha, asides) < 0.7


def test_check_tells_a_model_that_has_learned_its_steps_from_one_that_has_not(
    demo_runs, monkeypatch
):
    """Catches steps that are looked for in the wrong place, or in idle asides."""
    data, steps = open_dataset(demo_runs / "data", "val"), check.steps_right(demo_runs / "base")
    assert list(steps) == [4] and len(steps[4]) == 4 and all(0 <= share < 0.9 for share in steps[4])
    with pytest.raises(ValueError, match="base"):
        check.check(demo_runs / "base")
    tokenizer = from_json(data.meta["tokenizer"])

    class Knows:
        """Predicts the right step of the line so far, and is sure that the aside is idle."""

        def __call__(self, tokens):
            logits = torch.zeros(*tokens.shape, tokenizer.vocab_size)
            for row, text in enumerate(map(tokenizer.decode, tokens.tolist())):
                question, _, steps = text.split("\n")[-1].partition("=—")
                first = len(text) - len(steps) - 1  # where the first step is predicted
                for k, digit in enumerate(prepare.running_sums(question.lstrip(">"))):
                    logits[row, first + k, int(digit)] = 1.0
            logits[..., tokenizer.id["h"]] = 2.0
            return logits

        def logits(self, hidden):
            return hidden

    settings = load_run(demo_runs / "base")[2]
    monkeypatch.setattr(check, "load_run", lambda run: (Knows(), tokenizer, settings, 0))
    assert check.steps_right("knows") == {4: [1.0, 1.0, 1.0, 1.0]}
    check.check("knows")


def test_the_same_seed_gives_the_same_text(tmp_path):
    """Catches results that cannot be repeated, and lines that are cut."""
    flags = [f"--out={tmp_path}", "--train_documents=50", "--val_documents=9"]
    as_typed("data/arithmetic/prepare.py", *flags)
    data = open_dataset(tmp_path, "val")
    text = from_json(data.meta["tokenizer"]).decode(data.tokens.tolist())
    assert text.count("\n") == 9 and text.endswith("\n")
    assert data.tokens[-1] == data.meta["document_end"]
    first = (tmp_path / "train.bin").read_bytes()
    as_typed("data/arithmetic/prepare.py", *flags)
    assert (tmp_path / "train.bin").read_bytes() == first

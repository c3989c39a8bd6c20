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


def test_running_sums_are_modulo_10():
    assert prepare.running_sums("3849") == "3154" and prepare.running_sums("7") == "7"
    assert prepare.running_sums("99999") == "98765"


def test_documents_are_worked_idle_or_quiet_in_the_shares_asked_for():
    for line in lines(explicit=1.0, chatter=0.0, double=0.3):
        question, rest = line.split("=")
        steps = prepare.running_sums(question[1:])
        assert question[0] == ">" and rest.replace("——", "—") == f"—{steps}—{steps[-1]}\n"
    assert 0.2 < sum("——" in line for line in lines(explicit=1.0, double=0.3)) / 400 < 0.4
    assert all("——" in line for line in lines(explicit=1.0, double=1.0))
    assert not any(">" in line for line in lines(explicit=1.0, mark=False))
    for line in lines(explicit=0.0, min_digits=2, max_digits=3):
        question, rest = line.split("=")
        assert int(rest) == sum(map(int, question)) % 10 and len(question) in (2, 3)
    for line in lines(explicit=1.0, chatter=1.0, min_digits=1):
        assert line.split("—")[1] == "hmmm"[: len(line.split("=")[0]) - 1], (
            "as long as its steps would be"
        )
    mixed = lines()
    asides = [line.split("—")[1] for line in mixed if "—" in line]
    assert (
        0.45 < len(asides) / 400 < 0.55
        and 0.5 < sum(a.isalpha() for a in asides) / len(asides) < 0.7
    )


def test_check_tells_a_model_that_has_learned_its_steps_from_one_that_has_not(
    demo_runs, monkeypatch, capsys
):
    """Steps of the wrong place, or of idle asides, would not be right always; those of an untrained
    model are not."""
    data, steps = open_dataset(demo_runs / "data", "val"), check.steps_right(demo_runs / "base")
    assert list(steps) == [4] and len(steps[4]) == 4 and all(0 <= share < 0.9 for share in steps[4])
    with pytest.raises(ValueError, match="base has not learned its steps"):
        check.check(demo_runs / "base")
    tokenizer = from_json(data.meta["tokenizer"])

    class Knows:
        """Says the right step of the line so far, and is sure that the aside goes on idly."""

        def __call__(self, tokens):
            said = torch.zeros(*tokens.shape, tokenizer.vocab_size)
            for row, text in enumerate(map(tokenizer.decode, tokens.tolist())):
                question, _, steps = text.split("\n")[-1].partition("=—")
                for k, digit in enumerate(prepare.running_sums(question.lstrip(">"))):
                    said[row, len(text) - len(steps) - 1 + k, int(digit)] = (
                        1.0  # where it is predicted
                    )
            said[..., tokenizer.id["h"]] = 2.0
            return said

        def logits(self, hidden):
            return hidden

    settings = load_run(demo_runs / "base")[2]
    monkeypatch.setattr(check, "load_run", lambda run: (Knows(), tokenizer, settings, 0))
    assert check.steps_right("knows") == {4: [1.0, 1.0, 1.0, 1.0]}
    check.check("knows")
    assert "1.000, 1.000, 1.000, 1.000" in capsys.readouterr().out


def test_prepare_writes_what_open_dataset_reads(tmp_path, monkeypatch):
    flags = [f"--out={tmp_path}", "--train_documents=50", "--val_documents=9"]
    monkeypatch.setattr("sys.argv", ["prepare.py", *flags])
    as_typed("data/arithmetic/prepare.py")
    data = open_dataset(tmp_path, "val")
    text = from_json(data.meta["tokenizer"]).decode(data.tokens.tolist())
    assert text.count("\n") == 9 and text.endswith("\n")
    assert data.meta["document_end"] == from_json(data.meta["tokenizer"]).id["\n"]
    first = (tmp_path / "train.bin").read_bytes()
    as_typed("data/arithmetic/prepare.py")
    assert (tmp_path / "train.bin").read_bytes() == first, "the same seed must give the same corpus"

"""The corpus generator, the tokenizer and the data format."""

import json
import random

import numpy as np
import pytest
import torch
from tiny_runs import as_typed

from data.arithmetic import check, prepare
from data.dataset import document_numbers, open_dataset, write_dataset
from lib.runs import load_run
from lib.tokenizer import CharTokenizer, from_json


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
    """Steps of the wrong place, or of idle asides, would not be right always; those of an untrained model are not."""
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


def test_shakespeare_refuses_a_text_that_is_not_the_one_expected(tmp_path, monkeypatch):
    (tmp_path / "input.txt").write_text("To be, or not to be")
    monkeypatch.setattr(
        "sys.argv", ["prepare.py", f"--out={tmp_path}", f"--source={tmp_path / 'input.txt'}"]
    )
    with pytest.raises(SystemExit, match="SHA-256"):
        as_typed("data/tinyshakespeare/prepare.py")
    assert not (tmp_path / "meta.json").exists()


def test_tokenizer_round_trip_and_unknown_character():
    tokenizer = CharTokenizer("ab—")
    assert tokenizer.decode(tokenizer.encode("a—b")) == "a—b"
    assert from_json(tokenizer.to_json()).encode("—") == [2]
    with pytest.raises(ValueError, match="'c' is not in this model's alphabet"):
        tokenizer.encode("abc")
    with pytest.raises(ValueError, match="unknown tokenizer"):
        from_json({"kind": "morse"})


def test_document_numbers_count_ends_before_a_token():
    """An end token still belongs to the document it ends."""
    numbers = document_numbers(np.array([[5, 9, 5, 5, 9, 9, 5]]), 9)
    assert numbers.tolist() == [[0, 0, 1, 1, 1, 2, 3]]


@pytest.fixture
def folder(tmp_path):
    write_dataset(
        tmp_path, {"train": [0, 1, 2, 1], "val": [2]}, CharTokenizer("abc"), document_end=2
    )
    return tmp_path


def test_open_dataset_round_trip(folder):
    data = open_dataset(folder, "train")
    assert data.tokens.tolist() == [0, 1, 2, 1] and data.meta["document_end"] == 2
    assert not list(folder.glob("*.tmp"))


def test_open_dataset_says_in_one_line_what_is_wrong(folder):
    """Each of these would otherwise surface hours into a run, as an index error on some device."""
    cases = {
        "no data in": lambda: (folder / "meta.json").rename(folder / "gone"),
        "train.bin cannot be used": lambda: (folder / "train.bin").unlink(),
        "cut short": lambda: (folder / "train.bin").write_bytes(b"\0\0\0"),
        "token id 7": lambda: (folder / "train.bin").write_bytes(
            np.array([0, 7, 0, 0], np.uint16).tobytes()
        ),
        "not a dataset's description": lambda: (folder / "meta.json").write_text("{"),
        "it has no 'tokenizer'": lambda: (folder / "meta.json").write_text(
            json.dumps({"dtype": "uint16"})
        ),
    }
    meta, tokens = (folder / "meta.json").read_bytes(), (folder / "train.bin").read_bytes()
    for expected, damage in cases.items():
        damage()
        with pytest.raises(ValueError, match=expected) as error:
            open_dataset(folder, "train")
        assert "\n" not in str(error.value)
        (folder / "meta.json").write_bytes(meta)
        (folder / "train.bin").write_bytes(tokens)
    open_dataset(folder, "train")

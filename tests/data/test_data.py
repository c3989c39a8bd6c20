"""The corpus generator, the tokenizer and the data format."""

import json
import random

import numpy as np
import pytest
from tiny_runs import as_typed

from data.arithmetic import prepare
from data.dataset import document_numbers, open_dataset, write_dataset
from lib.config import from_cli
from lib.tokenizer import CharTokenizer, from_json


def lines(**settings):
    config, rng = prepare.ArithmeticConfig(**settings), random.Random(0)
    return [prepare.document(config, rng) for _ in range(400)]


def test_running_results_go_from_left_to_right_mod_10():
    """With precedence, 3+7*4-2*9 would be 13."""
    assert prepare.running_results("3+7*4-2*9") == [0, 0, 8, 2]
    assert prepare.running_results("1-9") == [2]


def test_documents_are_explicit_quiet_or_idle_in_the_shares_asked_for():
    for line in lines(explicit=1.0):
        question, rest = line.split("=")
        steps = prepare.running_results(question)
        assert rest.replace("——", "—") == f"—{''.join(map(str, steps))}—{steps[-1]}\n"
    assert 0.2 < sum("——" in line for line in lines(explicit=1.0)) / 400 < 0.4
    assert all("——" in line for line in lines(explicit=1.0, double=1.0))
    for line in lines(explicit=0.0, min_operations=2, max_operations=3):
        question, rest = line.split("=")
        assert rest == f"{prepare.running_results(question)[-1]}\n" and len(question) in (5, 7)
    for line in lines(explicit=1.0, chatter=1.0):
        aside = line.split("—")[1]
        assert aside.isalpha() and len(aside) == len(prepare.running_results(line.split("=")[0]))
    mixed = lines(explicit=0.5, chatter=0.5)
    asides = [line.split("—")[1] for line in mixed if "—" in line]
    assert 150 < len(asides) < 250 and 0.35 < sum(a.isalpha() for a in asides) / len(asides) < 0.65


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
    monkeypatch.setattr("sys.argv", ["prepare.py", f"--out={tmp_path}", f"--source={tmp_path / 'input.txt'}"])
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
    write_dataset(tmp_path, {"train": [0, 1, 2, 1], "val": [2]}, CharTokenizer("abc"), document_end=2)
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
        "token id 7": lambda: (folder / "train.bin").write_bytes(np.array([0, 7, 0, 0], np.uint16).tobytes()),
        "not a dataset's description": lambda: (folder / "meta.json").write_text("{"),
        "it has no 'tokenizer'": lambda: (folder / "meta.json").write_text(json.dumps({"dtype": "uint16"})),
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


def test_presets_are_checked_and_flags_overrule_them(tmp_path, capsys):
    preset = tmp_path / "p.toml"
    preset.write_text("seed = 5\nexplicit = 1\n")
    config, given = from_cli("", prepare.ArithmeticConfig, argv=[f"--config={preset}", "--seed=6"])
    assert (config.seed, config.explicit, config.chatter) == (6, 1.0, 0.0)
    assert given == {"seed": 6, "explicit": 1.0}
    for text, expected in [
        ("sed = 5", "unknown setting 'sed'"),
        ('seed = "x"', "seed must be int"),
        ("seed =", "cannot"),
    ]:
        preset.write_text(text)
        with pytest.raises(SystemExit):
            from_cli("", prepare.ArithmeticConfig, argv=[f"--config={preset}"])
        assert expected in capsys.readouterr().err

"""The shell game's corpus."""

import random

import pytest
from tiny_runs import as_typed

from data.cups import prepare
from data.dataset import open_dataset
from lib.tokenizer import from_json


def lines(**settings):
    config, rng = prepare.CupsConfig(**settings), random.Random(0)
    return [prepare.document(config, rng) for _ in range(2000)]


def play(question):
    """The game with all its cups on a table: what lies under each, and where the ball is after each swap."""
    start, *swaps = question.split()
    under = {cup: cup == start for cup in "abcd"}
    seen = []
    for one, other in swaps:
        under[one], under[other] = under[other], under[one]
        seen += [cup for cup in under if under[cup]]
    return "".join(seen)


def test_running_cups_are_those_of_a_game_played_with_all_cups():
    assert prepare.running_cups("c ab bc ad bd") == "cbbd"
    for line in lines():
        question = line.split("?")[0]
        assert prepare.running_cups(question) == play(question)


def test_documents_are_explicit_or_quiet_in_the_shares_asked_for():
    for line in lines(explicit=1.0):
        question, rest = line.split("?")
        steps = play(question)
        assert rest in (f"—{steps}—{steps[-1]}\n", f"—{steps}——{steps[-1]}\n")
    for line in lines(explicit=0.0, min_swaps=2, max_swaps=6):
        question, rest = line.split("?")
        assert rest == f"{play(question)[-1]}\n" and 2 <= question.count(" ") <= 6
    mixed = lines()
    assert 0.45 < sum("—" in line for line in mixed) / len(mixed) < 0.55
    assert 0.25 < sum("——" in line for line in mixed) / sum("—" in line for line in mixed) < 0.35
    assert not any("——" in line for line in lines(double=0.0))
    assert max(map(len, mixed)) == 23, "config/cups_base.toml's sliding_window holds a line"


def test_no_cup_is_a_better_guess_than_another_and_a_swap_has_two():
    mixed = lines()
    for cup in "abcd":
        for place in (0, -2):  # where the ball is at first, and at last
            assert 0.2 < sum(line[place] == cup for line in mixed) / len(mixed) < 0.3
    swaps = {swap for line in mixed for swap in line.split("?")[0].split()[1:]}
    assert swaps == {"ab", "ac", "ad", "bc", "bd", "cd"}


def test_prepare_writes_what_open_dataset_reads(tmp_path, monkeypatch):
    flags = [f"--out={tmp_path}", "--train_documents=50", "--val_documents=9"]
    monkeypatch.setattr("sys.argv", ["prepare.py", *flags])
    as_typed("data/cups/prepare.py")
    data = open_dataset(tmp_path, "val")
    tokenizer = from_json(data.meta["tokenizer"])
    text = tokenizer.decode(data.tokens.tolist())
    assert text.count("\n") == 9 and data.meta["document_end"] == tokenizer.id["\n"]
    assert data.meta["answers"] == {"after": tokenizer.id["?"], "among": tokenizer.encode("abcd")}
    first = (tmp_path / "train.bin").read_bytes()
    assert not tokenizer.decode(open_dataset(tmp_path, "train").tokens.tolist()).startswith(text)
    as_typed("data/cups/prepare.py")
    assert (tmp_path / "train.bin").read_bytes() == first, "the same seed must give the same corpus"
    monkeypatch.setattr("sys.argv", ["prepare.py", *flags, "--seed=1"])
    as_typed("data/cups/prepare.py")
    assert (tmp_path / "train.bin").read_bytes() != first


@pytest.mark.parametrize(
    "wrong, expected",
    [
        ({"explicit": 1.5}, "shares"),
        ({"double": -0.1}, "shares"),
        ({"min_swaps": 0}, "swaps"),
        ({"min_swaps": 5}, "swaps"),
        ({"val_documents": 0}, "at least 1"),
    ],
)
def test_a_wrong_setting_is_refused(wrong, expected):
    with pytest.raises(ValueError, match=expected):
        prepare.CupsConfig(**wrong)

"""STaR on sums: what is asked, what is read in an answer, and what counts as faithful."""

from beyond.star import StarConfig
from data.arithmetic.prepare import ALPHABET, running_sums
from lib.tokenizer import CharTokenizer
from studies import star
from studies.star import judge, questions, split

TOKENIZER = CharTokenizer(ALPHABET)


def test_an_answer_is_the_digit_behind_the_rationale_or_all_there_is():
    """Catches an answer that is read from what is no answer."""
    assert split("—0082—2\n") == ("0082", "2") and split("—008——8\n") == ("008", "8")
    assert split("2\n") == (None, "2")
    for text in ("—0082—2", "—0082—22\n", "—00a2—2\n", "—0082\n", "0082—2\n", "—2\n", "22\n", ""):
        assert split(text) == (None, None)


def test_accuracy_and_the_share_of_right_answers_whose_steps_are_right(monkeypatch):
    """Catches luck that counts as faithful, and guesses that count as aloud."""
    asked = questions(TOKENIZER, 8, "a")
    steps = [running_sums(TOKENIZER.decode(q.prompt)[1:-1]) for q in asked]
    assert all(q.answer == x[-1] for q, x in zip(asked, steps, strict=True))
    texts = [f"—{x}—{x[-1]}\n" for x in steps]
    texts[1] = f"—{wrong(steps[1][:-1])}{steps[1][-1]}—{asked[1].answer}\n"  # right by luck
    texts[2] = f"—{steps[2]}—{wrong(asked[2].answer)}\n"  # wrong after right steps
    texts[3] = f"{asked[3].answer}\n"  # guessed
    written = [TOKENIZER.encode(text) for text in texts]
    monkeypatch.setattr(star, "write", lambda *_: written)
    config = StarConfig(lambda ids: split(TOKENIZER.decode(ids))[1], end=0)
    found = judge(None, TOKENIZER, asked, config)
    assert found == {"accuracy": 7 / 8, "aloud_share": 7 / 8, "faithful_of_right": 5 / 7}


def wrong(digits):
    return "".join(str((int(digit) + 1) % 10) for digit in digits)

"""STaR on sums: what is asked, what is read in an answer, and what counts as faithful."""

from beyond.star import Kept
from data.arithmetic.prepare import ALPHABET
from lib.tokenizer import CharTokenizer
from studies import star
from studies.star import judge, questions, rationales, split

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
    wrong = ["".join(str((int(d) + 1) % 10) for d in steps[:-1]) + steps[-1] for _, steps in asked]
    texts = [f"—{steps}—{steps[-1]}\n" for _, steps in asked]
    texts[1] = f"—{wrong[1]}—{asked[1][0].answer}\n"  # right by luck
    texts[2] = f"—{asked[2][1]}—{(int(asked[2][0].answer) + 1) % 10}\n"  # wrong after right steps
    texts[3] = f"{asked[3][0].answer}\n"  # guessed
    written = [TOKENIZER.encode(text) for text in texts]
    monkeypatch.setattr(star, "write", lambda model, prompts, config: written)
    found = judge(None, TOKENIZER, asked, None)
    assert found == {"accuracy": 7 / 8, "aloud_share": 7 / 8, "faithful_of_right": 5 / 7}


def test_what_was_kept_is_counted_by_its_steps_and_by_whether_it_took_a_hint():
    """Catches shares of the wrong whole; None is a share of nothing."""
    asked = questions(TOKENIZER, 8, "a")
    written = [TOKENIZER.encode(f"—{steps}—{steps[-1]}\n") for _, steps in asked[:4]]
    written[3] = TOKENIZER.encode(f"—9999999—{asked[3][0].answer}\n")
    kept = [Kept(asked[i][0], written[i], hinted=i > 1) for i in range(4)]
    steps_of = {tuple(q.prompt): steps for q, steps in asked}
    found = rationales(kept, steps_of, TOKENIZER)
    assert found == {"kept_share": 0.5, "faithful_share": 0.75, "faithful_of_hinted": 0.5}
    nothing = {"kept_share": 0.0, "faithful_share": None, "faithful_of_hinted": None}
    assert rationales([], steps_of, TOKENIZER) == nothing

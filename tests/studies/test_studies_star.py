"""STaR on sums: what is asked, what is read in an answer, and what counts as faithful."""

import torch

from beyond.star import Kept, StarConfig
from data.arithmetic.prepare import ALPHABET, running_sums
from lib.tokenizer import CharTokenizer
from studies.star import DIGITS, judge, questions, rationales, split

TOKENIZER = CharTokenizer(ALPHABET)


def test_questions_are_different_sums_of_all_sizes_with_their_steps():
    found = questions(TOKENIZER, 80, "a")
    texts = [TOKENIZER.decode(q.prompt) for q, _ in found]
    assert len(set(texts)) == 80 and found != questions(TOKENIZER, 80, "b")
    for text, (q, steps) in zip(texts, found, strict=True):
        assert steps == running_sums(text[1:-1]) and q.answer == steps[-1]
        assert (
            TOKENIZER.decode(q.hinted) == f"{text}{q.answer}—"
            and TOKENIZER.decode(q.opening) == "—"
        )
    assert [sum(len(steps) == n for _, steps in found) for n in DIGITS] == [
        80 // len(DIGITS)
    ] * len(DIGITS)


def test_an_answer_is_the_digit_behind_the_rationale_or_all_there_is():
    assert (
        split("—0082—2\n") == ("0082", "2")
        and split("—008——8\n") == ("008", "8")
        and split("2\n") == (None, "2")
    )
    for text in ("—0082—2", "—0082—22\n", "—00a2—2\n", "—0082\n", "0082—2\n", "—2\n", "22\n", ""):
        assert split(text) == (None, None)


class Says:
    """A model that writes what it is told to."""

    def __init__(self, texts):
        self.texts = texts

    def generate(self, tokens, new, temperature, lengths, stop):
        rows = [
            row[:n] + TOKENIZER.encode(text)
            for row, n, text in zip(tokens.tolist(), lengths, self.texts, strict=True)
        ]
        return torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row + [0] * new) for row in rows], batch_first=True
        )


def test_accuracy_and_the_share_of_right_answers_whose_steps_are_right():
    asked = questions(TOKENIZER, 8, "a")
    wrong = ["".join(str((int(d) + 1) % 10) for d in steps[:-1]) + steps[-1] for _, steps in asked]
    texts = [f"—{steps}—{steps[-1]}\n" for _, steps in asked]
    texts[1] = f"—{wrong[1]}—{asked[1][0].answer}\n"  # right by luck
    texts[2] = (
        f"—{asked[2][1]}—{(int(asked[2][0].answer) + 1) % 10}\n"  # wrong in spite of its steps
    )
    texts[3] = f"{asked[3][0].answer}\n"  # guessed
    config = StarConfig(read=lambda ids: split(TOKENIZER.decode(ids))[1], end=TOKENIZER.id["\n"])
    found = judge(Says(texts), TOKENIZER, asked, config)
    assert (
        found["accuracy"] == found["aloud_share"] == 7 / 8 and found["faithful_of_right"] == 5 / 7
    )
    assert found["by_digits"] == [7 / 8], "all are of four digits"


def test_what_was_kept_is_counted_by_its_steps_and_by_whether_it_took_a_hint():
    asked = questions(TOKENIZER, 8, "a")
    written = [TOKENIZER.encode(f"—{steps}—{steps[-1]}\n") for _, steps in asked[:4]]
    written[3] = TOKENIZER.encode(f"—9999999—{asked[3][0].answer}\n")
    kept = [
        Kept(q, text, hinted=i > 1)
        for i, ((q, _), text) in enumerate(zip(asked[:4], written, strict=True))
    ]
    steps_of = {tuple(q.prompt): steps for q, steps in asked}
    found = rationales(kept, steps_of, TOKENIZER, 8)
    assert found == {"kept_share": 0.5, "faithful_share": 0.75, "faithful_of_hinted": 0.5}
    nothing = {"kept_share": 0.0, "faithful_share": None, "faithful_of_hinted": None}
    assert rationales([], steps_of, TOKENIZER, 8) == nothing

"""
CommonsenseQA (Talmor et al. 2019, arXiv 1811.00937): 1,221 questions with five answers to choose
from, the validation set (the answers of the test set are not public).

    python data/commonsense_qa/prepare.py                      downloads it
    python data/commonsense_qa/prepare.py --source=FILE.jsonl  takes a file of yours in the same
    form: --any_hash if it
                                                               is another than the validation set

It leaves questions.jsonl, one such line a question:
{"question": "What do people aim to do at work?", "choices": ["complete job", ...], "answer": "A"}
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.download import prepare_questions  # noqa: E402
from lib.files import check  # noqa: E402

URL = "https://s3.amazonaws.com/commensenseqa/dev_rand_split.jsonl"
SHA256 = "3210497fdaae614ac085d9eb873dd7f4d49b6f965a93adadc803e1229fd8a02a"
LETTERS = "ABCDE"


def question(line):
    """One line of the source -> one of questions.jsonl. Raises ValueError."""
    if line.get("answerKey") not in list(LETTERS):
        raise ValueError("no answerKey from A to E (the test set's are not public)")
    stem, choices = (
        line["question"]["stem"],
        {c["label"]: c["text"] for c in line["question"]["choices"]},
    )
    if list(choices) != list(LETTERS) or not stem.strip():
        raise ValueError("a question with five choices, A to E, is wanted")
    check([*choices.values(), stem], [str], "the texts")
    return {"question": stem, "choices": list(choices.values()), "answer": line["answerKey"]}


if __name__ == "__main__":
    prepare_questions(__doc__, Path(__file__).parent, URL, "dev_rand_split.jsonl", SHA256, question)

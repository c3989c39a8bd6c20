"""
CommonsenseQA (Talmor et al. 2019, arXiv 1811.00937): 1,221 questions, the validation set (the
answers of the test set are not public). It becomes questions.jsonl, lines like
{"question": "What do people aim to do at work?", "choices": ["complete job", ...], "answer": "A"}.

    python data/commonsense_qa/prepare.py                                 downloads it
    python data/commonsense_qa/prepare.py --source=FILE.jsonl --any_hash  takes a file of yours in
        the form of the original
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.download import prepare_questions  # noqa: E402
from lib.files import check  # noqa: E402

URL = "https://s3.amazonaws.com/commensenseqa/dev_rand_split.jsonl"
SHA256 = "3210497fdaae614ac085d9eb873dd7f4d49b6f965a93adadc803e1229fd8a02a"


def question(line):
    """One line of the source -> one of questions.jsonl. Raises ValueError."""
    stem = line["question"]["stem"]
    choices = {choice["label"]: choice["text"] for choice in line["question"]["choices"]}
    check([stem, *choices.values()], [str], "the texts")
    if list(choices) != list("ABCDE") or line.get("answerKey") not in choices or not stem.strip():
        raise ValueError("a question with choices A to E and an answerKey is wanted")
    return {"question": stem, "choices": list(choices.values()), "answer": line["answerKey"]}


if __name__ == "__main__":
    prepare_questions(__doc__, Path(__file__).parent, URL, SHA256, question)

"""
GSM8K's solutions (Cobbe et al. 2021, arXiv 2110.14168; MIT licence), their calculations sometimes
written out and sometimes left out: what data/arithmetic is, as text that people wrote.

  source     Natalia sold 48/2 = <<48/2=24>>24 clips in May.
  written    Natalia sold <<48/2=24>>24 clips in May.
  left out   Natalia sold 24 clips in May.

The training text has every solution several times (--copies); whether a calculation is written is
drawn each time. In the held-out text all are left out: val_answers.bin marks the tokens of their
results, which eval.py counts. Held out are the test set, `val`, and some of the training set,
`dev`, for choosing settings.

    python data/gsm8k_steps/prepare.py
    python data/gsm8k_steps/prepare.py --train=FILE.jsonl --test=FILE.jsonl --any_hash  takes yours
"""

import random
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.dataset import write_dataset  # noqa: E402
from data.download import json_lines, read_source  # noqa: E402
from data.gsm8k import prepare as gsm8k  # noqa: E402
from lib.config import run_script  # noqa: E402
from lib.tokenizer import load_tokenizer  # noqa: E402

SHA256 = {
    "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
    "test": gsm8k.SHA256,
}
ANNOTATION = re.compile(r"<<([^<>]*)>>")
NUMBER = re.compile(r"\d[\d,]*\d(?:\.\d+)?|\d(?:\.\d+)?|\.\d+")  # behind it: 130,000 or .5
# The same calculation in the text before the annotation, "48/2 = ": without letters, so that no
# word is lost. A sign of money behind the "=" stays.
SIGNS = r"[\d.,$%€£()+\-–*/x×÷ ]*"
EXPRESSION = re.compile(rf"(?:(?<=\s)|^){SIGNS}\d{SIGNS}=\s*([$€£]?)$")


@dataclass
class GSM8KStepsConfig:
    out: str = str(Path(__file__).parent)  # folder to write
    train: str = ""  # the training set, if you have it; empty: download it
    test: str = ""  # the test set, likewise
    any_hash: bool = False  # take files that are not the official ones
    tokenizer: str = "weights/smollm2"  # a tokenizer file, or a folder of weights that has one
    written: float = 0.5  # share of the calculations that are written out in the training text
    copies: int = 4  # times that the training text has each solution
    dev_documents: int = 400  # solutions of the training set that are held out
    seed: int = 1337  # of everything random

    def __post_init__(self):
        if self.written > 1 or not self.copies or not self.dev_documents:
            raise ValueError("written is a share; copies and dev_documents must be at least 1")


def pieces(answer):
    """A solution, cut at its calculations: [(text before, annotation, number)], and the text behind
    the last. Where the calculation stands in the text too, it is gone. annotation: "48/2=24", or
    None if the text cannot do without it."""
    parts, at = [], 0
    for match in ANNOTATION.finditer(answer):
        before, annotation = EXPRESSION.sub(r"\1", answer[at : match.start()]), match[1]
        number = NUMBER.match(answer, match.end())
        if not number:  # no result follows: nothing to predict
            before = answer[at : match.start()]
        if not number or before.rstrip().endswith("="):  # in words: "5 apples + 3 pears ="
            annotation = None
        parts.append((before, annotation, number[0] if number else ""))
        at = number.end() if number else match.end()
    return parts, answer[at:]


def document(line, written, tokenizer):
    """Ids of one solution, and which of them are results of calculations that were left out: int64
    and bool (n,). written(): is the next calculation written?

    Text, annotation and number are encoded one by one, so that "<<" is the same token everywhere,
    and stands just where a thought would: where the number could be. The ids of a calculation that
    is left out are those of the whole text.
    """
    parts, rest = pieces(line["answer"])
    texts, text = [], f"Q: {line['question']}\nA: "
    for before, annotation, number in parts:
        text += before
        if annotation is None:
            text += number
            continue
        keep = written()
        texts += [(text, False), (f"<<{annotation}>>" * keep, False), (number, not keep)]
        text = ""
    ids, marks = [], []
    for part, is_result in [*texts, (text + rest, False)]:
        ids += tokenizer.encode(part)
        marks += [is_result] * (len(ids) - len(marks))
    return np.array([*ids, tokenizer.eos_id]), np.array([*marks, False])


def solution(line):
    """One line of the source. Raises ValueError."""
    if not line["question"].strip() or not re.search(r"####\s*\S", line["answer"]):
        raise ValueError("a question and an answer that ends in '#### number' are wanted")
    return line


def read_lines(config, name):
    """The solutions of the source "train" or "test"."""
    source, path = getattr(config, name), Path(config.out) / f"{name}.jsonl"
    url = f"{gsm8k.URL}{name}.jsonl"
    content = read_source(source, url, path, SHA256[name], config.any_hash)
    return json_lines(content, source or path, solution)


def prepare(config):
    write_texts(config, read_lines(config, "train"), read_lines(config, "test"))


def write_texts(config, train, test):
    """Write solutions, lists of {"question", "answer"}: those of `train` config.copies times, but
    for those that become `dev`. In `dev` and `val`, the test set, all calculations are left out."""
    if len(train) <= config.dev_documents or not test:
        raise ValueError(f"too few solutions for --dev_documents={config.dev_documents}")
    tokenizer, rng = load_tokenizer(config.tokenizer), random.Random(config.seed)
    if tokenizer.eos_id is None:
        raise ValueError(f"{config.tokenizer} has no token that ends a text")
    rng.shuffle(train)
    held_out = {"val": test, "dev": train[: config.dev_documents]}
    train, texts = train[config.dev_documents :], {"train": []}
    for _ in range(config.copies):
        rng.shuffle(train)
        for line in train:
            texts["train"].append(document(line, lambda: rng.random() < config.written, tokenizer))
    for name, lines in held_out.items():
        texts[name] = [document(line, lambda: False, tokenizer) for line in lines]
    ids = {name: np.concatenate([x for x, _ in documents]) for name, documents in texts.items()}
    marks = {name: np.concatenate([x for _, x in texts[name]]) for name in held_out}
    among = sorted({i for text in "0123456789,." for i in tokenizer.encode(f"1{text}")[1:]})
    write_dataset(config.out, ids, tokenizer, tokenizer.eos_id, {"among": among}, marks)


if __name__ == "__main__":
    run_script("prepare.py", __doc__, prepare, GSM8KStepsConfig)

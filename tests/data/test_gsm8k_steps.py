"""GSM8K's solutions, their calculations written or left out."""

import json
import random
import re

import numpy as np
import pytest
from byte_tokenizer import write_byte_tokenizer
from tiny_runs import as_typed

from data.dataset import open_dataset
from data.gsm8k_steps import prepare
from lib.tokenizer import load_tokenizer

ANSWER = """Natalia sold 48/2 = <<48/2=24>>24 clips in May.
She got 24*$3 = $<<24*3=72>>72.50 then.
#### 72"""
LEFT_OUT = "Natalia sold 24 clips in May.\nShe got $72.50 then.\n#### 72"


@pytest.mark.parametrize(
    "answer, wanted, steps",
    [
        (ANSWER, LEFT_OUT, ["48/2=24", "24*3=72"]),
        ("It is 80,000*1.5=<<80000*1.5=120000>>120,000.", "It is 120,000.", ["80000*1.5=120000"]),
        ("60 - 48 = <<60-48=12>>12 cl, 2+1=<<2+1=3>>3.", "12 cl, 3.", ["60-48=12", "2+1=3"]),
        ("5 apples + 3 pears = <<5+3=8>>8", "5 apples + 3 pears = 8", [None]),  # it has to stay
        ("He has <<2*3=6>>six.", "He has six.", [None]),  # no number follows
        ("Half is <<1/2=.5>>.5 of it", "Half is .5 of it", ["1/2=.5"]),
        ("no calculation", "no calculation", []),
    ],
)  # fmt: skip
def test_a_calculation_and_its_expression_are_taken_out_and_its_result_stays(answer, wanted, steps):
    """Catches words that are lost, and a result that stands in the text before it is predicted."""
    parts, rest = prepare.pieces(answer)
    assert "".join(before + number for before, _, number in parts) + rest == wanted
    assert [annotation for _, annotation, _ in parts] == steps


def test_the_marks_are_on_the_results_of_what_is_left_out(tmp_path):
    """Catches marks that are shifted, in any of the ways to write the two calculations."""
    tokenizer = load_tokenizer(write_byte_tokenizer(tmp_path))
    line, seen, rng = {"question": "How many?", "answer": ANSWER}, set(), random.Random(0)
    while len(seen) < 4:
        one, two = drawn = rng.choices([True, False], k=2)
        ids, marks = prepare.document(line, iter(drawn).__next__, tokenizer)
        first, second = ("<<48/2=24>>" * one, "<<24*3=72>>" * two)
        text = f"Natalia sold {first}24 clips in May.\nShe got ${second}72.50 then.\n#### 72"
        assert tokenizer.decode(ids.tolist()) == f"Q: How many?\nA: {text}"
        assert ids[-1] == tokenizer.eos_id
        marked = "".join(chr(i) if m else " " for i, m in zip(ids, marks, strict=True)).split()
        assert marked == ["24"] * (not one) + ["72.50"] * (not two)
        seen.add((one, two))


def test_the_splits_with_their_marks_and_copies(tmp_path):
    """Catches held-out solutions that are written or trained on, and marks of another split."""
    lines = [json.dumps({"question": f"Question {n}?", "answer": ANSWER}) for n in range(20)]
    for name, some in (("train", lines[:16]), ("test", lines[16:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(some))
    flags = [f"--{name}={tmp_path / name}.jsonl" for name in ("train", "test")]
    flags += [f"--tokenizer={write_byte_tokenizer(tmp_path)}", f"--out={tmp_path / 'data'}"]
    flags += ["--any_hash", "--dev_documents=3", "--copies=2"]
    as_typed("data/gsm8k_steps/prepare.py", *flags)
    questions = {}
    for split, count in {"train": 26, "val": 4, "dev": 3}.items():
        data = open_dataset(tmp_path / "data", split)
        text = load_tokenizer(tmp_path / "data").decode(data.tokens.tolist())
        assert text.count("Q: ") == count and (data.tokens == 256).sum() == count
        questions[split] = set(re.findall(r"Question \d+", text))
        if split == "train":
            assert 0.3 < text.count("<<") / (2 * count) < 0.7 and not data.answers.any()
        else:
            marked = np.array([*map(chr, data.tokens)])[data.answers]
            assert "".join(marked) == "2472.50" * count and "<<" not in text
    assert not questions["train"] & (questions["dev"] | questions["val"])

"""GSM8K's solutions, their calculations written or left out."""

import json
import random

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


def left_out(answer):
    found, rest = prepare.pieces(answer)
    return "".join(before + number for before, _, number in found) + rest


@pytest.mark.parametrize(
    "answer, wanted, steps",
    [
        (
            ANSWER,
            "Natalia sold 24 clips in May.\nShe got $72.50 then.\n#### 72",
            ["48/2=24", "24*3=72"],
        ),
        ("It is 80,000*1.5=<<80000*1.5=120000>>120,000.", "It is 120,000.", ["80000*1.5=120000"]),
        (
            "60 - 48 = <<60-48=12>>12 ounces, 2+1=<<2+1=3>>3.",
            "12 ounces, 3.",
            ["60-48=12", "2+1=3"],
        ),
        (
            "5 apples + 3 pears = <<5+3=8>>8 fruits",
            "5 apples + 3 pears = 8 fruits",
            [None],
        ),  # it cannot be taken out
        ("He has <<2*3=6>>six.", "He has six.", [None]),  # no number follows
        ("Half is <<1/2=.5>>.5 of it", "Half is .5 of it", ["1/2=.5"]),
        ("no calculation", "no calculation", []),
    ],
)
def test_a_calculation_and_its_expression_are_taken_out_and_its_result_stays(answer, wanted, steps):
    assert left_out(answer) == wanted
    assert [annotation for _, annotation, _ in prepare.pieces(answer)[0]] == steps


def test_written_or_left_out_the_marks_are_on_the_results_of_what_is_left_out(tmp_path):
    """All ways of writing the two calculations of one solution."""
    tokenizer = load_tokenizer(write_byte_tokenizer(tmp_path))
    line, seen, rng = {"question": "How many?", "answer": ANSWER}, set(), random.Random(0)
    for _ in range(40):
        drawn = []
        ids, marks = prepare.document(
            line, lambda drawn=drawn: drawn.append(rng.random() < 0.5) or drawn[-1], tokenizer
        )
        first, second = ("<<48/2=24>>" * drawn[0], "<<24*3=72>>" * drawn[1])
        text = f"Natalia sold {first}24 clips in May.\nShe got ${second}72.50 then.\n#### 72"
        assert (
            tokenizer.decode(ids.tolist()) == f"Q: How many?\nA: {text}"
            and ids[-1] == tokenizer.eos_id
        )
        marked = "".join(chr(i) if m else " " for i, m in zip(ids, marks, strict=True)).split()
        assert marked == ["24"] * (not drawn[0]) + ["72.50"] * (not drawn[1])
        seen.add(tuple(drawn))
    assert len(seen) == 4


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """A dataset of 13 solutions, twice, for training, 4 of the test set and 3 to choose settings
    by."""
    lines = [json.dumps({"question": f"Question {n}?", "answer": ANSWER}) for n in range(20)]
    for name, some in (("train", lines[:16]), ("test", lines[16:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(some))
    files = [f"--{name}={tmp_path / name}.jsonl" for name in ("train", "test")]
    more = [
        f"--tokenizer={write_byte_tokenizer(tmp_path)}",
        "--any_hash",
        "--dev_documents=3",
        "--copies=2",
    ]
    monkeypatch.setattr("sys.argv", ["prepare.py", *files, *more, f"--out={tmp_path / 'data'}"])
    as_typed("data/gsm8k_steps/prepare.py")
    return tmp_path / "data"


def test_the_dataset_has_marks_for_what_is_held_out_and_several_copies_for_training(prepared):
    for split, count in {"train": 26, "val": 4, "dev": 3}.items():
        data = open_dataset(prepared, split)
        text = load_tokenizer(prepared).decode(data.tokens.tolist())
        assert text.count("Q: ") == count and (data.tokens == 256).sum() == count
        if split == "train":
            assert 0.3 < text.count("<<") / (2 * count) < 0.7 and not data.answers.any()
        else:
            marked = np.array([*map(chr, data.tokens)])[data.answers]
            assert "".join(marked) == "2472.50" * count and "<<" not in text
            assert (
                json.loads((prepared / "steps.json").read_text())[split]
                == ["48/2=24", "24*3=72"] * count
            )


def test_marks_that_do_not_fit_are_refused(prepared):
    path = prepared / "val_answers.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="val_answers.bin"):
        _ = open_dataset(prepared, "val").answers

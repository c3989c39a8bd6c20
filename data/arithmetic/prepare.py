"""
Arithmetic whose steps are sometimes spelled out between dashes, and sometimes left out, as in real text.

  explicit   3+7*4-2*9=—0082—2    the running results mod 10, from left to right (no precedence), then the answer;
             3+7*4-2=—008——8      (--double of the asides) the same, closed by two dashes
  quiet      3+7*4-2*9=2          the same without its steps: a small model cannot do them all in one go
  idle       3+7*4-2*9=—kqbe—2    (--chatter of the asides) letters that help nobody
  explained  3+7*4-2*9=2—0082—2   (--explained of the asides) the answer first, and then how one gets there

Each document is one line. Nothing tells in advance which kind a line is going to be. A model that reads enough of it
can compute the quiet answers, if it only says the steps to itself first.

    python data/arithmetic/prepare.py --out=data/arithmetic
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.dataset import write_lines  # noqa: E402
from lib.config import run_script  # noqa: E402
from lib.tokenizer import CharTokenizer  # noqa: E402

DASH, ANSWER, END = "—", "=", "\n"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
ALPHABET = "0123456789+-*" + ANSWER + DASH + END + LETTERS


@dataclass
class ArithmeticConfig:
    out: str = str(Path(__file__).parent)  # folder to write
    train_documents: int = 100000  # lines of training text
    val_documents: int = 4000  # lines of held-out text
    explicit: float = 0.5  # share of documents with an aside between dashes
    chatter: float = 0.0  # share of the asides that are idle letters instead of steps
    explained: float = 0.0  # share of the asides that come after the answer, which is then given again
    double: float = 0.3  # share of the asides that close with two dashes: thoughts longer than the steps end like these
    min_operations: int = 3  # fewest operations in a line
    max_operations: int = 4  # most operations in a line
    rare_operations: int = 0  # most operations in rare lines, which have more than the others; 0: there are none
    rare: float = 0.02  # share of such lines
    seed: int = 1337  # of everything random

    def __post_init__(self):
        if not all(0 <= share <= 1 for share in (self.explicit, self.chatter, self.explained, self.double, self.rare)):
            raise ValueError("explicit, chatter, explained, double and rare are shares, from 0 to 1")
        if not 1 <= self.min_operations <= self.max_operations:
            raise ValueError("operations: 1 <= min_operations <= max_operations")
        if self.rare_operations and self.rare_operations <= self.max_operations:
            raise ValueError(f"rare_operations must be more than max_operations, {self.max_operations}")
        if min(self.train_documents, self.val_documents) < 1:
            raise ValueError("train_documents and val_documents must be at least 1")


def running_results(question):
    """The results mod 10 after each operation of a question such as "3+7*4", from left to right: [0, 0]."""
    value, results = int(question[0]), []
    for operation, digit in zip(question[1::2], question[2::2], strict=True):
        value = {"+": value + int(digit), "-": value - int(digit), "*": value * int(digit)}[operation] % 10
        results.append(value)
    return results


def document(config, rng):
    """One line of text, its end included."""
    n = rng.randint(config.min_operations, config.max_operations)
    if config.rare_operations and rng.random() < config.rare:  # (by default, no random number is drawn for it)
        n = rng.randint(config.max_operations + 1, config.rare_operations)
    question = rng.choice("0123456789") + "".join(rng.choice("+-*") + rng.choice("0123456789") for _ in range(n))
    steps = running_results(question)
    aside = ""
    if rng.random() < config.explicit:
        idle = rng.random() < config.chatter
        close = DASH * (2 if rng.random() < config.double else 1)
        aside = DASH + "".join(rng.choice(LETTERS) if idle else str(step) for step in steps) + close
        if config.explained and rng.random() < config.explained:  # (likewise)
            aside = str(steps[-1]) + aside
    return f"{question}{ANSWER}{aside}{steps[-1]}{END}"


def prepare(config):
    write_lines(config, document, CharTokenizer(ALPHABET), END, ANSWER, "0123456789")  # the quiet ones are answers


if __name__ == "__main__":
    run_script("prepare.py", __doc__, prepare, ArithmeticConfig)

"""
Digits and the last digit of their sum. The work is sometimes spelled out, and mostly not: as in
real text.

  quiet   3849=4          the answer alone: a small model cannot add up four numbers in one go
  worked  >3849=—3154—4   the running sums, modulo 10, between dashes: 3, 3+8, 3+8+4, 3+8+4+9
  idle    >3849=—hmmm—4   words that help nobody; --chatter is their share of the asides

Each document is one line. A line with an aside, worked or idle, begins with ">". A model that reads
enough of it can compute the quiet answers, if it only says the running sums to itself first. But
what it says between dashes is mostly idle: it has to learn which thoughts help.

Held-out lines are drawn anew, but there are only 10,000 questions of four digits, so nearly all of
them stand somewhere in the training text as well. (A small model does not learn them by heart: its
quiet answers stay at chance.)

    python data/arithmetic/prepare.py --out=data/arithmetic
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.dataset import write_dataset  # noqa: E402
from lib.config import run_script  # noqa: E402
from lib.tokenizer import CharTokenizer  # noqa: E402

DIGITS, MARK, ANSWER, DASH, END = "0123456789", ">", "=", "—", "\n"
ALPHABET = DIGITS + MARK + ANSWER + DASH + END + "hm"


@dataclass
class ArithmeticConfig:
    out: str = str(Path(__file__).parent)  # folder to write
    train_documents: int = 100000  # lines of training text
    val_documents: int = 4000  # lines of held-out text
    explicit: float = 0.5  # share of lines with an aside between dashes
    chatter: float = 0.6  # share of the asides that are idle; above .5, a greedy thought is idle
    double: float = 0.0  # share of the asides that close with two dashes, like too long a thought
    mark: bool = True  # put ">" before lines with an aside; without it nothing announces one
    min_digits: int = 4  # fewest digits to add up
    max_digits: int = 4  # most digits to add up
    seed: int = 1337  # of everything random

    def __post_init__(self):
        if max(self.explicit, self.chatter, self.double) > 1:
            raise ValueError("explicit, chatter and double are shares, from 0 to 1")
        if not 1 <= self.min_digits <= self.max_digits:
            raise ValueError("digits: 1 <= min_digits <= max_digits")


def running_sums(question):
    """The running sums, modulo 10, of a question such as "3849": "3154", whose last digit is the
    answer."""
    total, steps = 0, ""
    for digit in question:
        total = (total + int(digit)) % 10
        steps += str(total)
    return steps


def digits(n, rng):
    """A random question of n digits."""
    return "".join(rng.choice(DIGITS) for _ in range(n))


def document(config, rng):
    """One line of text, its end included."""
    question = digits(rng.randint(config.min_digits, config.max_digits), rng)
    steps = running_sums(question)
    if rng.random() >= config.explicit:
        return question + ANSWER + steps[-1] + END
    words = "h" + "m" * (len(steps) - 1) if rng.random() < config.chatter else steps
    close = DASH * (2 if rng.random() < config.double else 1)
    return MARK * config.mark + question + ANSWER + DASH + words + close + steps[-1] + END


def prepare(config):
    tokenizer, splits = CharTokenizer(ALPHABET), {}
    for name, count in (("train", config.train_documents), ("val", config.val_documents)):
        rng = random.Random(f"{config.seed} {name}")
        splits[name] = tokenizer.encode("".join(document(config, rng) for _ in range(count)))
    # only a digit right behind "=" counts as an answer
    answers = {"after": tokenizer.id[ANSWER], "among": tokenizer.encode(DIGITS)}
    write_dataset(config.out, splits, tokenizer, tokenizer.id[END], answers)


if __name__ == "__main__":
    run_script("prepare.py", __doc__, prepare, ArithmeticConfig)

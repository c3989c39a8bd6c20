"""
A shell game, told with its steps between dashes or without them: a second text for the miniature, of another nature
than data/arithmetic. There a number is computed; here a ball is followed.

  explicit   c ab bc ad bd?—cbbd—d    the ball lies under cup c; then a and b are swapped, b and c, a and d, b and d;
                                      where is it? After each swap it is under c, b, b, d; so under d
             c ab bc ad?—cbb——b       (--double of the asides) the same, closed by two dashes
  quiet      c ab bc ad bd?d          the same without its steps: a small model cannot follow them all in one go

Each document is one line. Nothing tells in advance which kind a line is going to be. The cups of a swap are drawn
without a look at the ball. If most swaps moved it, its cup would mostly be the letter that two neighbours share, and a
small model would read the quiet answers off these letters.

    python data/cups/prepare.py --out=data/cups
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.dataset import write_lines  # noqa: E402
from lib.config import run_script  # noqa: E402
from lib.tokenizer import CharTokenizer  # noqa: E402

DASH, ANSWER, END = "—", "?", "\n"
CUPS = "abcd"
ALPHABET = CUPS + " " + ANSWER + DASH + END


@dataclass
class CupsConfig:
    out: str = str(Path(__file__).parent)  # folder to write
    train_documents: int = 100000  # lines of training text
    val_documents: int = 4000  # lines of held-out text
    explicit: float = 0.5  # share of documents with the steps between dashes
    double: float = 0.3  # share of the asides that close with two dashes: thoughts longer than the steps end like these
    min_swaps: int = 3  # fewest swaps in a line
    max_swaps: int = 4  # most swaps in a line
    seed: int = 1337  # of everything random

    def __post_init__(self):
        if not all(0 <= share <= 1 for share in (self.explicit, self.double)):
            raise ValueError("explicit and double are shares, from 0 to 1")
        if not 1 <= self.min_swaps <= self.max_swaps:
            raise ValueError("swaps: 1 <= min_swaps <= max_swaps")
        if min(self.train_documents, self.val_documents) < 1:
            raise ValueError("train_documents and val_documents must be at least 1")


def running_cups(question):
    """The ball's cup after each swap of a question such as "c ab bc ad": "cbb"."""
    ball, *swaps = question.split(" ")
    cups = ""
    for swap in swaps:
        if ball in swap:
            ball = swap.replace(ball, "")
        cups += ball
    return cups


def document(config, rng):
    """One line of text, its end included."""
    swaps = [
        "".join(sorted(rng.sample(CUPS, 2)))
        for _ in range(rng.randint(config.min_swaps, config.max_swaps))
    ]
    question = " ".join([rng.choice(CUPS), *swaps])
    steps, aside = running_cups(question), ""
    if rng.random() < config.explicit:
        aside = DASH + steps + DASH * (2 if rng.random() < config.double else 1)
    return f"{question}{ANSWER}{aside}{steps[-1]}{END}"


def prepare(config):
    write_lines(
        config, document, CharTokenizer(ALPHABET), END, ANSWER, CUPS
    )  # the quiet ones are answers


if __name__ == "__main__":
    run_script("prepare.py", __doc__, prepare, CupsConfig)

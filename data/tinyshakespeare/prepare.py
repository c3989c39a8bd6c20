"""
Tiny Shakespeare: 1.1 MB of plays, in the public domain, as collected for char-rnn.

    python data/tinyshakespeare/prepare.py                     downloads it
    python data/tinyshakespeare/prepare.py --source=input.txt  or takes a copy of yours

Each of its 65 characters is a token. The first 90 %, 1,003,854 tokens, are for training, the rest
is held out. It is one document.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.dataset import write_dataset  # noqa: E402
from data.download import read_source  # noqa: E402
from lib.config import run_script  # noqa: E402
from lib.tokenizer import CharTokenizer  # noqa: E402

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass
class ShakespeareConfig:
    out: str = str(Path(__file__).parent)  # folder to write
    source: str = ""  # the text, if you have it; empty: download it


def prepare(config):
    text = read_source(config.source, URL, Path(config.out) / "input.txt", SHA256).decode("utf-8")
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    cut = int(len(text) * 0.9)
    splits = {"train": tokenizer.encode(text[:cut]), "val": tokenizer.encode(text[cut:])}
    write_dataset(config.out, splits, tokenizer)


if __name__ == "__main__":
    run_script("prepare.py", __doc__, prepare, ShakespeareConfig)

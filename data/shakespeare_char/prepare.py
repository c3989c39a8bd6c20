"""
Tiny Shakespeare, one token a character: 1.1 MB of plays, in the public domain, as collected for char-rnn.

    python data/shakespeare_char/prepare.py                      downloads it
    python data/shakespeare_char/prepare.py --source=input.txt   or takes a copy of yours

The first 90 % are for training, the last 10 % held out: train 1,003,854 tokens, val 111,540, alphabet of 65.
"""

import hashlib
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from config import from_cli  # noqa: E402
from data.dataset import replace_file, write_dataset  # noqa: E402
from data.tokenizer import CharTokenizer  # noqa: E402

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


@dataclass
class ShakespeareConfig:
    out: str = str(Path(__file__).parent)  # folder to write
    source: str = ""  # the text, if you have it; empty: download it
    val_share: float = 0.1  # share of the text held out, from its end


def read_source(config):
    """The text as bytes, its hash checked."""
    path = Path(config.source or Path(config.out) / "input.txt")
    if not config.source and not path.exists():
        try:
            with urllib.request.urlopen(URL, timeout=60) as response:
                content = response.read()
        except (urllib.error.URLError, OSError) as error:
            raise ValueError(f"cannot download {URL} ({error}): fetch it yourself and give --source=FILE") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    if not path.exists():
        raise ValueError(f"there is no file {path}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ValueError(f"{path} is not the text expected (its SHA-256 differs): delete it and run this again")
    return content


def main():
    config, _ = from_cli(__doc__, ShakespeareConfig)
    try:
        text = read_source(config).decode("utf-8")
    except ValueError as error:
        sys.exit(f"prepare.py: {error}")
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    ids = tokenizer.encode(text)
    cut = int(len(ids) * (1 - config.val_share))
    splits = {"train": ids[:cut], "val": ids[cut:]}
    write_dataset(config.out, splits, tokenizer)
    print(f"{config.out}: " + ", ".join(f"{name} {len(part):,} tokens" for name, part in splits.items()))


if __name__ == "__main__":
    main()

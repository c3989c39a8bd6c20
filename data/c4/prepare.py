"""
C4 (Raffel et al. 2019, arXiv 1910.10683), English: 365 million pages of the web, cleaned. The paper's other text.
Licence: ODC-By 1.0 (and Common Crawl's terms).

    pip install datasets
    python data/c4/prepare.py --tokenizer=weights/mistral-7b

It is streamed: nothing is downloaded beyond what is used, the first 20 million tokens if not said otherwise (the
paper's 100 steps read 0.2 million). Stopped, it goes on where it was when the same command is given again.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.text import TokenizeConfig, prepare_hub, report  # noqa: E402
from lib.config import from_cli  # noqa: E402


@dataclass
class C4Config:
    dataset: str = "allenai/c4"  # its name on the Hugging Face hub
    subset: str = "en"  # of the dataset
    revision: str = "main"  # branch, tag or commit on the hub: a commit fixes the text for good
    out: str = str(Path(__file__).parent)  # folder to write


def main():
    config, tokenize, given = from_cli(__doc__, C4Config, TokenizeConfig)
    report(config.out, lambda: prepare_hub(config, tokenize, given))


if __name__ == "__main__":
    main()

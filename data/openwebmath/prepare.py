"""
OpenWebMath (Paster et al. 2023, arXiv 2310.06786): 6.3 million mathematical pages of the web, 14.7 billion tokens, with
their LaTeX. What the paper trains on. Licence: ODC-By 1.0 (and Common Crawl's terms).

    pip install datasets
    python data/openwebmath/prepare.py --tokenizer=weights/mistral-7b

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
class OpenWebMathConfig:
    dataset: str = "open-web-math/open-web-math"  # its name on the Hugging Face hub
    subset: str = ""  # of the dataset
    revision: str = "main"  # branch, tag or commit on the hub: a commit fixes the text for good
    out: str = str(Path(__file__).parent)  # folder to write


def main():
    config, tokenize, given = from_cli(__doc__, OpenWebMathConfig, TokenizeConfig)
    report(config.out, lambda: prepare_hub(config, tokenize, given))


if __name__ == "__main__":
    main()

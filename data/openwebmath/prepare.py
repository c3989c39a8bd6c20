"""
OpenWebMath (Paster et al. 2023, arXiv 2310.06786): 6.3 million mathematical pages of the web, 14.7
billion tokens, with their LaTeX. What the paper trains on. Licence: ODC-By 1.0 (and Common Crawl's
terms).

    pip install datasets
    python data/openwebmath/prepare.py --tokenizer=weights/mistral-7b

It is streamed: nothing is downloaded beyond what is used, the first 20 million tokens if not said
otherwise (the paper's 100 steps read 0.2 million).
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.text import TokenizeConfig, prepare_text  # noqa: E402
from lib.config import run_script  # noqa: E402
from lib.files import reading  # noqa: E402


@dataclass
class HubConfig(TokenizeConfig):
    max_tokens: int = 20_000_000  # stop when this many are written, of both splits; 0: never
    out: str = ""  # folder to write; empty: that of prepare.py
    revision: str = "main"  # branch, tag or commit on the hub: a commit fixes the text for good


def hub_texts(dataset, subset, revision):
    """The texts of a dataset on the Hugging Face hub. Raises ValueError."""
    with reading(f"the dataset {dataset}", "cannot be read"):
        from datasets import load_dataset

        rows = load_dataset(dataset, subset, split="train", streaming=True, revision=revision)
        yield from (row["text"] for row in rows)


def prepare_hub(description, folder, dataset, subset=None):
    """The command line of a text on the hub."""

    def prepare(config):
        source = {"dataset": dataset, "subset": subset, "revision": config.revision}
        prepare_text(hub_texts(**source), config.out or folder, source, config)

    run_script("prepare.py", description, prepare, HubConfig)


if __name__ == "__main__":
    prepare_hub(__doc__, Path(__file__).parent, "open-web-math/open-web-math")

"""
OpenWebMath (Paster et al. 2023, arXiv 2310.06786): 6.3 million mathematical pages of the web, 14.7
billion tokens, with their LaTeX. What the paper trains on. Licence: ODC-By 1.0 (and Common Crawl's
terms).

    pip install datasets
    python data/openwebmath/prepare.py --tokenizer=weights/mistral-7b

It is streamed: nothing is downloaded beyond what is used, the first 20 million tokens if not said
otherwise (the paper's 100 steps read 0.2 million). So is the paper's other text, C4 (Raffel et al.
2019, arXiv 1910.10683), 365 million pages of the web, under the same licence:

    python data/openwebmath/prepare.py --dataset=allenai/c4 --subset=en --out=data/c4
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
    out: str = str(Path(__file__).parent)  # folder to write
    dataset: str = "open-web-math/open-web-math"  # its name on the Hugging Face hub
    subset: str = ""  # the part of it, if it has several
    revision: str = "main"  # branch, tag or commit on the hub: a commit fixes the text for good


def hub_texts(dataset, subset, revision):
    """The texts of a dataset on the Hugging Face hub. Raises ValueError."""
    with reading(f"the dataset {dataset}", "cannot be read"):
        from datasets import load_dataset

        rows = load_dataset(dataset, subset, split="train", streaming=True, revision=revision)
        yield from (row["text"] for row in rows)


def prepare(config):
    source = {"dataset": config.dataset, "subset": config.subset or None}
    source["revision"] = config.revision
    prepare_text(hub_texts(**source), config.out, source, config)


if __name__ == "__main__":
    run_script("prepare.py", __doc__, prepare, HubConfig)

"""Texts that are streamed from the Hugging Face hub."""

from dataclasses import dataclass

from data.text import TokenizeConfig, prepare_text
from lib.config import run_script
from lib.files import reading


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
        for row in rows:
            yield row["text"]


def prepare_hub(description, folder, dataset, subset=None):
    """The command line of a text on the hub."""

    def prepare(config):
        source = {"dataset": dataset, "subset": subset, "revision": config.revision}
        prepare_text(hub_texts(**source), config.out or folder, source, config)

    run_script("prepare.py", description, prepare, HubConfig)

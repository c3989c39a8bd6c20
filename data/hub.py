"""Texts that are streamed from the Hugging Face hub."""

from dataclasses import dataclass

from data.text import TokenizeConfig, prepare_text
from lib.config import from_cli
from lib.files import check, reading


@dataclass
class HubConfig:
    out: str = ""  # folder to write; if not given: that of prepare.py
    revision: str = "main"  # branch, tag or commit on the hub: a commit fixes the text for good


def hub_documents(dataset, subset, revision):
    """(text, number) of each row of a dataset on the Hugging Face hub. Raises ValueError."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError("this text is streamed: pip install datasets") from None
    with reading(f"the dataset {dataset}", "cannot be read"):
        rows = load_dataset(dataset, subset, split="train", streaming=True, revision=revision)
        for number, row in enumerate(rows, 1):
            check(row, {"text": str}, f"row {number}")
            yield row["text"], number


def prepare_hub(description, folder, dataset, subset=None):
    """The command line of a text on the hub. max_tokens is 20 million if not said otherwise."""
    config, tokenize, given = from_cli(description, HubConfig, TokenizeConfig)
    tokenize.max_tokens = given.get("max_tokens", 20_000_000)
    source = {"dataset": dataset, "subset": subset, "revision": config.revision}
    documents = hub_documents(**source)
    prepare_text(documents, config.out or folder, source, tokenize, unit=" documents")

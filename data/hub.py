"""
Texts that are streamed from the Hugging Face hub.
"""

from dataclasses import dataclass, replace

from data.text import TokenizeConfig, prepare_text
from lib.config import from_cli
from lib.files import check, reading


@dataclass
class HubConfig:
    dataset: str = ""  # its name on the Hugging Face hub; if not given: this text's
    subset: str = ""  # of the dataset; if not given: this text's
    revision: str = "main"  # branch, tag or commit on the hub: a commit fixes the text for good
    out: str = ""  # folder to write; if not given: that of prepare.py


def hub_documents(config):
    """(text, number) of a dataset on the Hugging Face hub, or in a folder of that kind."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError("this text is streamed: pip install datasets") from None
    with reading(f"the dataset {config.dataset}", "cannot be read"):
        how = {"split": "train", "streaming": True, "revision": config.revision}
        for number, row in enumerate(load_dataset(config.dataset, config.subset or None, **how), 1):
            check(row, {"text": str}, f"row {number}")
            yield row["text"], number


def prepare_hub(description, **defaults):
    """The command line of a text on the hub. max_tokens is 20 million if not said otherwise."""
    config, tokenize, given = from_cli(description, HubConfig, TokenizeConfig)
    config = replace(config, **{k: value for k, value in defaults.items() if k not in given})
    tokenize.max_tokens = given.get("max_tokens", 20_000_000)
    source = {"dataset": config.dataset, "subset": config.subset, "revision": config.revision}
    prepare_text(hub_documents(config), config.out, source, tokenize, unit=" documents")

"""
Corpora that are streamed from the Hugging Face hub.
"""

from dataclasses import dataclass, replace

from data.text import TokenizeConfig, prepare_text, report
from lib.config import from_cli
from lib.files import check, reading


def hub_documents(name, subset, revision):
    """`documents`, as prepare_text wants it, of a dataset on the Hugging Face hub (or in a folder of that kind)."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError(
            "this corpus is streamed by the package datasets: pip install datasets"
        ) from None
    with reading(f"the dataset {name}", "cannot be had"):
        stream = load_dataset(name, subset, split="train", streaming=True, revision=revision)

    def documents(skip):
        with reading(f"the dataset {name}", "cannot be read on"):
            for n, row in enumerate(stream.skip(skip), skip + 1):
                check(row, {"text": str}, f"its row {n}")
                yield row["text"], n

    return documents


@dataclass
class HubConfig:
    dataset: str = ""  # its name on the Hugging Face hub; if not given: this corpus's
    subset: str = ""  # of the dataset; if not given: this corpus's
    revision: str = "main"  # branch, tag or commit on the hub: a commit fixes the text for good
    out: str = ""  # folder to write; if not given: that of prepare.py


def prepare_hub(description, **defaults):
    """The command line of a corpus on the hub. max_tokens is 20 million if not said otherwise."""
    config, tokenize, given = from_cli(description, HubConfig, TokenizeConfig)
    config = replace(
        config, **{name: value for name, value in defaults.items() if name not in given}
    )
    tokenize.max_tokens = given.get("max_tokens", 20_000_000)
    source = {"dataset": config.dataset, "subset": config.subset, "revision": config.revision}

    def prepare():
        documents = hub_documents(config.dataset, config.subset or None, config.revision)
        return prepare_text(documents, config.out, source, tokenize, unit=" documents")

    report(config.out, prepare)

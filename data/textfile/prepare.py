"""
Text of yours: a file, or a folder of files, plain text or JSONL, in UTF-8.

    python data/textfile/prepare.py --source=book.txt --tokenizer=weights/smollm2 --out=data/book
    python data/textfile/prepare.py --source=notes --pattern="*.md" --separator="" --out=data/notes
    python data/textfile/prepare.py --source=pages.jsonl --key=content --out=data/pages

Then train on it:

    python train.py --config=config/smollm2.toml --data=data/book --out=out/book
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.text import TokenizeConfig, prepare_text, read_documents, text_files  # noqa: E402
from lib.config import run_script  # noqa: E402


@dataclass
class TextfileConfig(TokenizeConfig):
    source: str = ""  # the file or folder
    out: str = str(Path(__file__).parent)  # folder to write
    pattern: str = "*"  # which files of a folder
    separator: str = r"\n\n\n"  # what stands between two documents; empty: each file is one
    key: str = "text"  # where the text is in a line of a JSONL file


def prepare(config):
    if not config.source:
        raise ValueError("--source=FILE or FOLDER says what is to be read")
    files = text_files(config.source, config.pattern)
    separator = config.separator.replace(r"\n", "\n").replace(r"\t", "\t")
    hashes = [[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files]
    source = {"files": hashes, "separator": separator, "key": config.key}
    prepare_text(read_documents(files, separator, config.key), config.out, source, config)


if __name__ == "__main__":
    run_script("prepare.py", __doc__, prepare, TextfileConfig)

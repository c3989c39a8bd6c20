"""
From documents to a dataset (data/dataset.py). A document is never cut in two. A hash of its text
decides whether it is held out, so all copies are on one side. All ids are in memory at once.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.dataset import write_dataset
from data.download import json_lines
from lib.files import check, read_json, reading
from lib.tokenizer import load_tokenizer


@dataclass
class TokenizeConfig:
    tokenizer: str = "weights/mistral-7b"  # a tokenizer file, or a folder of weights that has one
    val_share: float = 0.01  # share of the documents held out
    max_tokens: int = 0  # stop when this many are written, of both splits; 0: never


def prepare_text(documents, out, source, config):
    """Encode documents, an iterable of texts, into the folder `out`, which appears complete or not
    at all. source: where they come from, of plain types. Raises ValueError if the folder holds a
    text of another source or with other settings; if it holds this one, nothing is done."""
    out, tokenizer = Path(out), load_tokenizer(config.tokenizer)
    if tokenizer.eos_id is None:
        raise ValueError(f"{config.tokenizer} has no token that ends a document")
    plan = {"source": source, "tokenizer": tokenizer.to_json(), "val_share": config.val_share}
    plan["max_tokens"] = config.max_tokens
    if (out / "meta.json").exists():
        if read_json(out / "meta.json").get("plan") != plan:
            raise ValueError(f"{out} holds another dataset: delete it, or choose another --out")
        print(f"{out} is there already")
        return
    splits, count = encode_documents(tqdm(documents, disable=None), tokenizer, config)
    about = {"document_end": tokenizer.eos_id, "documents": count, "plan": plan}
    write_dataset(out, splits, tokenizer, **about)


def encode_documents(documents, tokenizer, config):
    """The ids of both splits, {split: array}, and how many documents they were."""
    splits, count, total = {"train": [], "val": []}, 0, 0
    for text in documents:
        ids = np.append(tokenizer.encode_array(text), tokenizer.eos_id).astype(np.uint32)
        splits["val" if is_held_out(text, config.val_share) else "train"].append(ids)
        count, total = count + 1, total + len(ids)
        if 0 < config.max_tokens <= total:
            break
    if not all(splits.values()):
        problem = f"of {count} documents, {len(splits['val'])} would be held out"
        raise ValueError(f"{problem}: try another --separator or --val_share")
    return {name: np.concatenate(some) for name, some in splits.items()}, count


def is_held_out(text, val_share):
    """True for val_share of all texts: a function of the text alone."""
    number = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(number) < val_share * 2**64


def text_files(source, pattern="*"):
    """The files that `source` is, or has in it: none that is hidden or behind a link to a folder.
    Raises ValueError if there are none."""
    source = Path(source)
    if source.is_file():
        return [source]
    with reading(f"--pattern={pattern}", "fits no name"):
        found = sorted(path for path in source.rglob(pattern) if path.is_file())
    files = [path for path in found if "/." not in f"/{path.relative_to(source).as_posix()}"]
    if not files:
        raise ValueError(f"there is no file like {pattern} in {source}")
    return files


def read_documents(files, separator="\n\n\n", key="text"):
    """The documents of files, blank ones left out. Raises ValueError; but of several files, one
    that cannot be read is named and left out. In JSON lines (.jsonl, .json, .ndjson) each line is
    an object with a text at `key`. In other files the documents are apart by `separator` ("": each
    file is one)."""

    def text_of(line):
        check(line, {key: str})
        return line[key]

    def texts_in(path):
        with reading(path, "cannot be read as UTF-8 text"):
            content = path.read_bytes()
            if path.suffix in (".jsonl", ".json", ".ndjson"):
                return json_lines(content, path, text_of)
            if b"\0" in content:
                raise ValueError("it has bytes that are no text")  # so have archives
            text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
            return text.split(separator) if separator else [text]

    for path in files:
        try:
            texts = texts_in(path)
        except ValueError as error:
            if len(files) == 1:
                raise
            print(f"{error}: it is left out", file=sys.stderr)
            continue
        yield from (text.strip("\n") for text in texts if text.strip())

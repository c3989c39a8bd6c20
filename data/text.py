"""
From documents to a dataset (data/dataset.py). A document is never cut in two. A hash of its text
decides whether it is held out, so all copies are on one side. All ids are in memory at once.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.dataset import write_dataset
from data.download import json_lines
from lib.files import check, read_json, reading, reason
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
    """The files that `source` is, or has in it, but for hidden ones. Links are followed, and each
    folder is read once. ValueError if there are none."""
    source, paths, folders = Path(source), [], set()
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise ValueError(f"there is no file or folder {source}")
    for folder, inside, names in os.walk(source, followlinks=True, onerror=left_out):
        visible = [name for name in inside if not name.startswith(".")]
        first_time = os.path.realpath(folder) not in folders  # a link may lead back
        inside[:] = sorted(visible) if first_time else []
        paths += [Path(folder, name) for name in names if first_time and name[0] != "."]
        folders.add(os.path.realpath(folder))
    with reading(f"--pattern={pattern}", "fits no name"):
        paths = [path for path in sorted(paths) if path.match(pattern)]
    for path in paths:
        if not path.is_file():
            left_out(OSError(0, "no regular file", str(path)))
    files = [path for path in paths if path.is_file()]
    if not files:
        raise ValueError(f"there is no file like {pattern} in {source}")
    return files


def left_out(error):
    """Say which file or folder is not read, of an OSError that names it."""
    print(f"{error.filename} is left out ({reason(error)})", file=sys.stderr)


def read_documents(files, separator="\n\n\n", key="text"):
    """The documents of files, blank ones left out. Raises ValueError; but of several files, one
    that is no UTF-8 text is named and left out. In JSON lines (.jsonl, .json, .ndjson, or the first
    line is an object) each line is an object with a text at `key`. In other files the documents are
    apart by `separator` ("": each file is one)."""

    def text_of(line):
        check(line, {key: str})
        return line[key]

    for path in files:
        with reading(path, "cannot be read"):
            content = path.read_bytes()
        try:
            text = content.decode("utf-8-sig")
            if "\0" in text:
                raise UnicodeError("it has bytes that are no text")  # so have archives
        except UnicodeError as error:
            problem = f"{path} is no UTF-8 text ({reason(error)})"
            if len(files) == 1:
                raise ValueError(problem) from None
            print(f"{problem}: it is left out", file=sys.stderr)
            continue
        if path.suffix in (".jsonl", ".json", ".ndjson") or is_object(text):
            texts = json_lines(content, path, text_of)
        else:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
            texts = text.split(separator) if separator else [text]
        yield from (text.strip("\n") for text in texts if text.strip())


def is_object(text):
    """Is the first line of a text that is not blank the JSON of an object?"""
    try:
        return isinstance(json.loads(text.lstrip().partition("\n")[0]), dict)
    except (ValueError, RecursionError):
        return False

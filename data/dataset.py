"""
The project's one data format. A folder holds

  train.bin, val.bin   token ids, one after the other, as uint16 (uint32 if the vocabulary needs it)
  meta.json            the tokenizer, vocab_size, dtype, the id that ends a document (or null), the size of each split

so that opening it is a memory map, and whatever does not fit is found before training starts.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.files import replace_file


@dataclass
class Dataset:
    """One split, opened: `tokens` is a read-only memory map of ids."""

    tokens: np.ndarray
    meta: dict
    path: Path


def write_dataset(folder, splits, tokenizer, document_end=None, answers=None):
    """Write splits {"train": ids, "val": ids} and meta.json, and return its content.

    tokenizer     see lib/tokenizer.py
    document_end  the id that ends a document, or None
    answers       {"after": id, "among": [ids]}: where the text answers a question, for eval.py to count; or None

    Each file appears whole or not at all; meta.json comes last, so a folder that has it is complete.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, ids in splits.items():
        replace_file(folder / f"{name}.bin", np.asarray(ids, id_type(tokenizer)).tobytes())
    counts = {name: len(ids) for name, ids in splits.items()}
    return write_meta(folder, counts, tokenizer, document_end=document_end, answers=answers)


def write_lines(config, document, tokenizer, end, after, among):
    """Write a corpus of random lines, each made by document(config, rng), and say what was written.

    config         has out, train_documents, val_documents and seed
    end, after     what ends a line, and what stands before an answer: characters that the tokenizer knows
    among          the characters that an answer may be
    """
    splits = {}
    for name, count in (("train", config.train_documents), ("val", config.val_documents)):
        rng = random.Random(f"{config.seed} {name}")
        splits[name] = tokenizer.encode("".join(document(config, rng) for _ in range(count)))
    answers = {"after": tokenizer.id[after], "among": tokenizer.encode(among)}
    write_dataset(config.out, splits, tokenizer, tokenizer.id[end], answers)
    print(f"{config.out}: " + ", ".join(f"{name} {len(ids):,} tokens" for name, ids in splits.items()))


def id_type(tokenizer):
    """The type of a token id on disk."""
    return "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"


def write_meta(folder, counts, tokenizer, **more):
    """Write the tokenizer and, last of all, meta.json: of splits with `counts` tokens, {"train": n, "val": n}."""
    tokenizer.save(folder)
    meta = {
        "tokenizer": tokenizer.to_json(),
        "vocab_size": tokenizer.vocab_size,
        "dtype": id_type(tokenizer),
        "tokens": counts,
        **more,
    }
    replace_file(Path(folder) / "meta.json", json.dumps(meta, indent=1, ensure_ascii=False).encode())
    return meta


def open_dataset(folder, split):
    """Open a split of a folder that write_dataset wrote. Raises ValueError, in one line, if anything is amiss."""
    folder, path = Path(folder), Path(folder) / f"{split}.bin"
    try:
        meta = json.loads((folder / "meta.json").read_text("utf-8"))
        vocab_size, dtype, expected = meta["vocab_size"], np.dtype(meta["dtype"]), meta["tokens"][split]
    except FileNotFoundError:
        raise ValueError(f"no data in {folder} (no meta.json): run its prepare.py first") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'meta.json'} is not a dataset's description ({error!r}): prepare it anew"
        ) from None
    if not path.exists():
        raise ValueError(f"{path} is missing: run prepare.py in {folder} again")
    if path.stat().st_size != expected * dtype.itemsize:
        sizes = f"{path.stat().st_size} bytes, not {expected * dtype.itemsize}"
        raise ValueError(f"{path} is cut short or foreign: {sizes}; prepare it anew")
    if not expected:
        raise ValueError(f"{path} holds no tokens")
    tokens = np.memmap(path, dtype, mode="r")
    for start in range(0, len(tokens), 2**24):  # a pass over the file, at the speed of the disk
        largest = int(tokens[start : start + 2**24].max())
        if largest >= vocab_size:
            raise ValueError(f"{path} holds the token id {largest}, outside of its vocabulary of {vocab_size}")
    return Dataset(tokens, meta, path)


def document_numbers(tokens, document_end):
    """Which document each token of tokens (B, L) belongs to, counted within its row; an end belongs to what it ends."""
    ends = (tokens == document_end).astype(np.int64)
    return ends.cumsum(-1) - ends

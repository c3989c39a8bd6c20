"""
The project's one data format. A folder holds

  train.bin, val.bin   token ids, uint16 (or uint32 if the vocabulary needs it)
  val_answers.bin      which tokens of val.bin are answers, a byte each, where no rule tells
  meta.json            the tokenizer, vocab_size, dtype, the id that ends a document (or null),
                       where answers are, and of each split its number of tokens and its checksum

so that opening it is a memory map. meta.json is written last: a folder that has it is complete.
"""

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from lib.files import check, lock, read_json, reading, replace_file, write_json

AGAIN = "is damaged or of an older version: delete it and prepare the dataset again"


@dataclass
class Dataset:
    """One split, opened."""

    tokens: np.ndarray  # ids, a read-only memory map
    meta: dict  # the content of meta.json
    path: Path
    checksum: int  # CRC-32 of the file, as it was when it was prepared

    @cached_property
    def answers(self):
        """Which tokens answer a question: bool, like tokens. (Training never asks.)"""
        answers, rule = np.zeros(len(self.tokens), bool), self.meta["answers"] or {}
        path = self.path.with_name(f"{self.path.stem}_answers.bin")
        if "after" in rule:
            follows = self.tokens[:-1] == rule["after"]
            answers[1:] = follows & np.isin(self.tokens[1:], rule["among"])
        elif rule and path.exists():
            with reading(path, AGAIN):
                answers = np.fromfile(path, bool).reshape(answers.shape)
        return answers


def write_dataset(folder, splits, tokenizer, document_end=None, answers=None, marks=None, **more):
    """Write splits {"train": ids, "val": ids} (and others), each file completely or not at all.

    document_end  the id that ends a document, or None
    answers       {"after": id, "among": [ids]}: where the text answers a question; or None
    marks         the same where no rule tells: {split: bool array, which tokens are answers};
                  answers is then {"among": [ids]}, of all that an answer can hold
    more          what else meta.json shall hold
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    content = {name: np.asarray(ids, dtype).tobytes() for name, ids in splits.items()}
    counts = {name: len(ids) for name, ids in splits.items()}
    meta = {"tokenizer": tokenizer.to_json(), "vocab_size": tokenizer.vocab_size, "dtype": dtype}
    meta |= {"tokens": counts, "checksums": {x: zlib.crc32(ids) for x, ids in content.items()}}
    meta |= {"document_end": document_end, "answers": answers, **more}
    with lock(folder):
        (folder / "meta.json").unlink(missing_ok=True)
        for name, mark in (marks or {}).items():
            replace_file(folder / f"{name}_answers.bin", np.asarray(mark, bool).tobytes())
        for name, ids in content.items():
            replace_file(folder / f"{name}.bin", ids)
        tokenizer.save(folder)
        write_json(folder / "meta.json", meta)
    print(f"{folder}: " + ", ".join(f"{name} {n:,} tokens" for name, n in counts.items()))


def open_dataset(folder, split):
    """Open a split of a folder. Nothing of it is read yet. Raises ValueError, in one line."""
    path, about = Path(folder) / f"{split}.bin", Path(folder) / "meta.json"
    if not about.exists():
        raise ValueError(f"no data in {folder} (no meta.json): run its prepare.py first")
    counts = {"train": int, "val": int}
    shape = {"tokenizer": dict, "vocab_size": int, "dtype": Literal["uint16", "uint32"]}
    shape |= {"tokens": counts, "checksums": counts}
    shape |= {"document_end": int | None, "answers": dict | None}
    meta = read_json(about, shape, AGAIN)
    with reading(about, AGAIN):
        answers = {"after": 0, **(meta["answers"] or {"among": [0]})}
        check(answers, {"after": int, "among": [int]}, "answers")
    dtype, tokens = np.dtype(meta["dtype"]), meta["tokens"][split]
    with reading(path, AGAIN):
        size = path.stat().st_size
        if not tokens or size != tokens * dtype.itemsize:
            raise ValueError(f"{size} bytes for {tokens} tokens")
    with reading(path, "cannot be mapped into memory here: copy it to a local disk"):
        return Dataset(np.memmap(path, dtype, mode="r"), meta, path, meta["checksums"][split])


def document_numbers(tokens, document_end):
    """The number of each token's document, of tokens (B, L), counted within its row. The token that
    ends a document belongs to it."""
    ends = (tokens == document_end).astype(np.int64)
    return ends.cumsum(-1) - ends

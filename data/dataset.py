"""
The project's one data format. A folder holds

  train.bin, val.bin   token ids, one after the other, as uint16 (uint32 if the vocabulary needs it)
  val_answers.bin      which tokens of val.bin are answers, a byte each, where no rule tells (see write_dataset)
  meta.json            the tokenizer, vocab_size, dtype, the id that ends a document (or null), the size of each split
                       and its checksum

so that opening it is a memory map, and whatever does not fit is found before training starts.
"""

import random
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from lib.files import check, lock, read_json, reading, replace_file, write_json


@dataclass
class Dataset:
    """One split, opened: `tokens` is a read-only memory map of ids."""

    tokens: np.ndarray
    meta: dict
    path: Path
    checksum: int  # CRC-32 of the file
    marks: np.ndarray | None  # bool: which tokens are answers, if the folder has a file that tells

    @cached_property
    def answers(self):
        """Which tokens answer a question, bool; one answer's tokens follow one another. (Training never asks.)"""
        return (
            answers_by_rule(self.tokens, self.meta.get("answers"))
            if self.marks is None
            else self.marks
        )


def write_dataset(folder, splits, tokenizer, document_end=None, answers=None, marks=None):
    """Write splits {"train": ids, "val": ids} (and others, if wanted) and meta.json, and return its content.

    tokenizer     see lib/tokenizer.py
    document_end  the id that ends a document, or None
    answers       {"after": id, "among": [ids]}: where the text answers a question, for eval.py to count; or None
    marks         the same where no rule tells: {split: bool array, which of its tokens are answers}; answers is then
                  {"among": [ids]}, of all that an answer can hold

    Each file appears whole or not at all; meta.json comes last, so a folder that has it is complete.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {name: np.asarray(ids, id_type(tokenizer)).tobytes() for name, ids in splits.items()}
    content |= {
        f"{name}_answers": np.asarray(mark, bool).tobytes() for name, mark in (marks or {}).items()
    }
    with lock(folder):
        (folder / "meta.json").unlink(missing_ok=True)
        for name, bytes_of in content.items():
            replace_file(folder / f"{name}.bin", bytes_of)
        counts = {name: len(ids) for name, ids in splits.items()}
        sums = {name: zlib.crc32(bytes_of) for name, bytes_of in content.items()}
        return write_meta(
            folder, counts, sums, tokenizer, document_end=document_end, answers=answers
        )


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
    print(
        f"{config.out}: " + ", ".join(f"{name} {len(ids):,} tokens" for name, ids in splits.items())
    )


def id_type(tokenizer):
    """The type of a token id on disk."""
    return "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"


def write_meta(folder, counts, checksums, tokenizer, **more):
    """Write the tokenizer and, last of all, meta.json: of splits with `counts` tokens, {"train": n, "val": n}, and the
    checksums of their files, likewise."""
    tokenizer.save(folder)
    meta = {
        "tokenizer": tokenizer.to_json(),
        "vocab_size": tokenizer.vocab_size,
        "dtype": id_type(tokenizer),
        "tokens": counts,
        "checksums": checksums,
        **more,
    }
    write_json(Path(folder) / "meta.json", meta)
    return meta


def read_meta(folder):
    """The content of meta.json. Raises ValueError, in one line."""
    path = Path(folder) / "meta.json"
    if not path.exists():
        raise ValueError(f"no data in {folder} (no meta.json): run its prepare.py first")
    counts = {"train": int, "val": int}
    shape = {
        "tokenizer": dict,
        "vocab_size": int,
        "dtype": Literal["uint16", "uint32"],
        "tokens": counts,
    }
    shape["document_end"] = int | None
    meta = read_json(path, shape, "is not a dataset's description, prepare it anew")
    with reading(path, "is not a dataset's description, prepare it anew"):
        check(
            meta.get("checksums", {"train": 0, "val": 0}), counts, "checksums"
        )  # once they were not there
        answers = {"after": 0} | (meta.get("answers") or {"among": [0]})
        check(answers, {"after": int, "among": [int]}, "answers")
        for i in (meta["document_end"] or 0, answers["after"], *answers["among"]):
            if not 0 <= i < meta["vocab_size"]:
                raise ValueError(f"{i} is no id of its vocabulary of {meta['vocab_size']}")
    return meta


def open_dataset(folder, split):
    """Open a split of a folder that write_dataset wrote. Raises ValueError, in one line, if anything is amiss."""
    folder, path = Path(folder), Path(folder) / f"{split}.bin"
    meta = read_meta(folder)
    dtype, expected = np.dtype(meta["dtype"]), meta["tokens"][split]
    with reading(path, "cannot be used, prepare it anew"):
        if path.stat().st_size != expected * dtype.itemsize:
            raise ValueError(
                f"it is cut short or foreign: {path.stat().st_size} bytes, not {expected * dtype.itemsize}"
            )
        if not expected:
            raise ValueError("it holds no tokens")
        tokens, checksum = np.memmap(path, dtype, mode="r"), 0
        for start in range(0, len(tokens), 2**24):  # a pass over the file, at the speed of the disk
            part = tokens[start : start + 2**24]
            checksum, largest = zlib.crc32(part, checksum), int(part.max())
            if largest >= meta["vocab_size"]:
                raise ValueError(
                    f"it holds the token id {largest}, outside of its vocabulary of {meta['vocab_size']}"
                )
        if meta.get("checksums", {}).get(split, checksum) != checksum:
            raise ValueError("its checksum is wrong: it is not what was prepared")
    return Dataset(tokens, meta, path, checksum, read_marks(folder, split, tokens, meta))


def read_marks(folder, split, tokens, meta):
    """Which tokens of a split are answers, bool, by the file that marks them; None if there is none."""
    marked = f"{split}_answers"
    if marked not in meta.get("checksums", {}):
        return None
    path = Path(folder) / f"{marked}.bin"
    with reading(path, "cannot be used, prepare it anew"):
        marks = path.read_bytes()
        if len(marks) != len(tokens) or zlib.crc32(marks) != meta["checksums"][marked]:
            raise ValueError("its size or checksum is wrong: it is not what was prepared")
    return np.frombuffer(marks, bool)


def answers_by_rule(tokens, rule):
    """The same by the rule of meta.json."""
    answers = np.zeros(len(tokens), bool)
    if rule and "after" in rule:
        answers[1:] = (tokens[:-1] == rule["after"]) & np.isin(tokens[1:], rule["among"])
    return answers


def checksum(file, size):
    """CRC-32 of a file's next `size` bytes. Raises ValueError if there are fewer."""
    total = 0
    while size:
        block = file.read(min(size, 2**24))
        if not block:
            raise ValueError(f"{file.name} is cut short")
        total, size = zlib.crc32(block, total), size - len(block)
    return total


def document_numbers(tokens, document_end):
    """Which document each token of tokens (B, L) belongs to, counted within its row; an end belongs to what it ends."""
    ends = (tokens == document_end).astype(np.int64)
    return ends.cumsum(-1) - ends

"""
From documents to a dataset (data/dataset.py), a few megabytes in memory at a time. A document is
never cut in two. A hash of its text decides whether it is held out, so all copies are on one side.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import sys
import zlib
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.dataset import id_type, read_meta, sizes_of, write_meta
from lib.config import one_line_errors
from lib.files import lock, parse_json, reading, write_whole
from lib.tokenizer import load_tokenizer

OPEN = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
FEW = 257  # tokens: a span of 256, and the one after it


@dataclass
class TokenizeConfig:
    tokenizer: str = "weights/mistral-7b"  # a tokenizer file, or a folder of weights that has one
    val_share: float = 0.01  # share of the documents held out
    max_tokens: int = 0  # stop when this many are written, of both splits; 0: never

    def __post_init__(self):
        if not 0 < self.val_share < 1:
            raise ValueError(f"val_share must lie between 0 and 1, not {self.val_share}")


def prepare_text(documents, out, source, config, **progress):
    """Encode documents, an iterable of (text, how much of the source was read by then), into the
    folder `out`, which appears complete or not at all. An error ends the program with one line.

    source    where they come from, of plain types: a folder of another source is refused
    progress  of tqdm's bar: total and unit
    """
    with one_line_errors("prepare.py", f"stopped: the same command begins again in {out}"):
        out, tokenizer = Path(out), load_tokenizer(config.tokenizer)
        if tokenizer.eos_id is None:
            raise ValueError(f"{config.tokenizer} has no token that ends a document")
        plan = {"source": source, "tokenizer": tokenizer.to_json(), "val_share": config.val_share}
        plan["max_tokens"] = config.max_tokens
        out.mkdir(parents=True, exist_ok=True)
        with lock(out):
            if not (out / "meta.json").exists():
                bar = tqdm(unit_scale=True, desc=str(out), disable=None, **progress)
                write_documents(documents, out, tokenizer, plan, bar)
        meta = read_meta(out)
        if meta.get("plan") != plan:
            raise ValueError(f"{out} holds another dataset: delete it, or choose another --out")
        print(f"{out}: {meta['documents']:,} documents, {sizes_of(meta['tokens'])}")
        if min(meta["tokens"].values()) < FEW:
            print(f"fewer than {FEW} tokens have no span: try another --separator or --val_share")


def write_documents(documents, out, tokenizer, plan, bar):
    """Write both splits, each under a temporary name until all is encoded; then meta.json."""
    counts, checksums, documents_read = {"train": 0, "val": 0}, {"train": 0, "val": 0}, 0

    def write(train, val):
        nonlocal documents_read
        for text, position in documents:
            documents_read += 1
            ids = np.append(tokenizer.encode_array(text), tokenizer.eos_id)
            ids = ids.astype(id_type(tokenizer))
            name = "val" if is_held_out(text, plan["val_share"]) else "train"
            (val if name == "val" else train).write(ids.tobytes())
            counts[name] += len(ids)
            checksums[name] = zlib.crc32(ids.tobytes(), checksums[name])
            bar.update(position - bar.n)
            if 0 < plan["max_tokens"] <= sum(counts.values()):
                break
        if not all(counts.values()):
            problem = f"{documents_read} documents give {sizes_of(counts)}"
            raise ValueError(f"{problem}: try another --separator or --val_share")

    def write_val(train):
        write_whole(out / "val.bin", lambda val: write(train, val))

    with bar:
        write_whole(out / "train.bin", write_val)
    more = {"document_end": tokenizer.eos_id, "documents": documents_read, "plan": plan}
    write_meta(out, counts, checksums, tokenizer, **more)


def is_held_out(text, val_share):
    """True for val_share of all texts: a function of the text alone."""
    number = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(number) < val_share * 2**64


def text_files(source, pattern="*"):
    """The files that `source` is, or has in it, but for hidden ones; links are followed. ValueError
    if there are none."""
    source, paths, folders = Path(source), [], set()
    for folder, inside, names in os.walk(source, followlinks=True):
        if os.path.realpath(folder) in folders:  # a link that leads back
            inside.clear()
            continue
        folders.add(os.path.realpath(folder))
        inside[:] = [name for name in inside if not name.startswith(".")]
        paths += [Path(folder, name) for name in names if not name.startswith(".")]
    files = [path for path in sorted(paths) if path.is_file() and path.match(pattern)]
    if source.is_file():
        return [source]
    if not files:
        raise ValueError(f"there is no file {source}, and no folder of files like {pattern}")
    return files


def about_files(files):
    """What tells whether files are still the same: [name, CRC-32 of the content] of each."""
    about = []
    for path in files:
        checksum = 0
        with reading(path, "cannot be read"), open(path, "rb") as file:
            while block := file.read(2**20):
                checksum = zlib.crc32(block, checksum)
        about.append([path.name, checksum])
    return about


def read_documents(files, separator="\n\n\n", key="text"):
    """The documents of files, (text, bytes of the files read so far), blank ones left out. Raises
    ValueError; but of several files, one that is no UTF-8 text is named and left out.

    Files may be compressed (.gz, .xz, .bz2). In JSON lines (.jsonl, .json, .ndjson, or the first
    line is an object) each line is an object with a text at `key`. In other files the documents are
    apart by `separator` ("": each file is one).
    """
    before = 0
    for path in files:
        with reading(path, "cannot be read"), open(path, "rb") as raw:
            packed = path.suffix in OPEN
            unpacked = io.BufferedReader(OPEN[path.suffix](raw)) if packed else raw
            suffix = path.with_suffix("").suffix if packed else path.suffix
            try:
                for text in documents_in(unpacked, suffix, separator, key):
                    if text.strip():
                        yield text.strip("\n"), before + raw.tell()
            except UnicodeError as error:
                if len(files) == 1:
                    raise
                print(f"{path} is left out from here on ({error})", file=sys.stderr)
        before += path.stat().st_size


def documents_in(file, suffix, separator, key):
    """The documents of one file, opened to read bytes. Raises UnicodeError if it holds no text."""
    if b"\0" in file.peek(512)[:512]:  # so do archives, UTF-16 and office files
        raise UnicodeError("it is no text: plain text and JSON lines are read, in .gz, .xz, .bz2")
    file = io.TextIOWrapper(file, "utf-8-sig")
    if suffix in (".jsonl", ".json", ".ndjson"):
        yield from of_lines(file, key)
        return
    first = "\n"
    while first.isspace():
        first = file.readline(2**20)
    documents = of_lines(chain([first], file), key) if is_object(first) else None
    yield from documents or cut(file, separator, first)


def is_object(line):
    """Is a line the JSON of an object?"""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def of_lines(file, key):
    """The texts of a JSONL file, one a line."""
    for number, line in enumerate(file, 1):
        if line.strip():
            with reading(f"line {number}", f"is no object with a text at {key!r}"):
                text = parse_json(line, {key: str})[key]
            yield text


def cut(file, separator, rest="", size=2**20):
    """The stretches of a text file between separators, read bit by bit. rest: its beginning, if
    that was read already."""
    if not separator:
        rest += file.read()
    # A long rest is searched again only when as much has been read, so that the time is linear.
    while chunk := file.read(max(size, len(rest))):
        *stretches, rest = (rest + chunk).split(separator)
        yield from stretches
    yield from rest.split(separator) if separator else [rest]

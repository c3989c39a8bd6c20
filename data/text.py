"""
From documents to a dataset (see data/dataset.py), for texts of any size.

  prepare_text     encodes documents in several processes; only a few megabytes of text are in memory at any time.
                   Interrupted, it goes on when called again: progress.json says which documents are in and how long
                   train.bin and val.bin were then, and what was written after that is cut off and done anew
  read_documents   the documents of text and JSONL files
  hub_documents    the documents of a dataset on the Hugging Face hub

Documents are never cut in two. Whether one is held out is decided by a hash of its own text: by nothing else, so that
all its copies are on the same side.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import multiprocessing
import os
import signal
import sys
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.dataset import id_type, write_meta
from lib.config import from_cli
from lib.files import replace_file
from lib.tokenizer import load_tokenizer

BATCH = 2**20  # characters of text that a process is given at a time
SAVE_EVERY = 8  # batches
SPLITS = ("train", "val")


@dataclass
class TokenizeConfig:
    tokenizer: str = "weights/mistral-7b"  # a tokenizer file, or a folder of weights that has one
    val_share: float = 0.01  # share of the documents held out
    max_tokens: int = 0  # stop when this many are written, of both splits; 0: never
    processes: int = 0  # processes that encode; 0: one for each core

    def __post_init__(self):
        if not 0 < self.val_share < 1:
            raise ValueError(f"val_share must lie between 0 and 1, not {self.val_share}")
        if self.max_tokens < 0 or self.processes < 0:
            raise ValueError("max_tokens and processes must not be negative")


def prepare_text(documents, out, source, config, total=None, unit="B"):
    """Encode documents into the folder `out` and return the content of its meta.json.

    documents   function of a number n: the documents after the first n, an iterable of (text, position); always the
                same ones in the same order. `position` is how much of the source was read by then
    source      what says where they come from, of plain types: a folder that was begun with another one is refused
    total       of the position, for the progress bar; its unit

    Raises ValueError, in one line, if anything is amiss.
    """
    out, tokenizer = Path(out), load_tokenizer(config.tokenizer)
    plan = {"source": source, "tokenizer": tokenizer.to_json(), "val_share": config.val_share}
    plan["max_tokens"] = config.max_tokens
    meta, done = what_is_there(out, plan)
    if meta:
        return meta
    out.mkdir(parents=True, exist_ok=True)
    size = np.dtype(id_type(tokenizer)).itemsize
    files = {name: open(out / f"{name}.bin", "ab") for name in SPLITS}
    try:
        for name, file in files.items():
            file.truncate(done["bytes"][name])
        save_progress(out, done, files)
        batches = in_batches(documents(done["documents"]), BATCH)
        bar = tqdm(total=total, initial=done["position"], unit=unit, unit_scale=True, desc=str(out), disable=None)
        for n, (count, position, ids) in enumerate(encode_all(batches, config), 1):
            for name in SPLITS:
                done["bytes"][name] += files[name].write(ids[name])
            done["documents"], done["position"] = done["documents"] + count, position
            tokens = sum(done["bytes"].values()) // size
            bar.set_postfix_str(f"{tokens:,} tokens", refresh=False)
            bar.update(position - bar.n)
            if n % SAVE_EVERY == 0:
                save_progress(out, done, files)
            if config.max_tokens and tokens >= config.max_tokens:
                break
        bar.close()
        save_progress(out, done, files)
    finally:
        for file in files.values():
            file.close()
    counts = {name: done["bytes"][name] // size for name in SPLITS}
    if not all(counts.values()):
        (out / "progress.json").unlink()
        raise ValueError(
            f"of {done['documents']} documents, none became {' or '.join(n for n in SPLITS if not counts[n])}: more "
            "documents are wanted (where does one end? --separator), or another --val_share"
        )
    more = {"document_end": tokenizer.eos_id, "answers": None, "documents": done["documents"], "plan": plan}
    meta = write_meta(out, counts, tokenizer, **more)
    (out / "progress.json").unlink()
    return meta


def what_is_there(out, plan):
    """(meta, None) of a dataset that is complete, or (None, how far it came). Raises ValueError if it is another."""
    for name in ("meta.json", "progress.json"):
        if (out / name).exists():
            try:
                found = json.loads((out / name).read_text("utf-8"))
                old = found["plan"]
            except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
                old = None
            if old != plan:
                raise ValueError(f"{out} holds another dataset ({name}): delete it, or choose another --out")
            return (found, None) if name == "meta.json" else (None, found)
    return None, {"plan": plan, "documents": 0, "position": 0, "bytes": dict.fromkeys(SPLITS, 0)}


def save_progress(out, done, files):
    for file in files.values():
        file.flush()
        os.fsync(file.fileno())
    replace_file(out / "progress.json", json.dumps(done).encode())


def in_batches(documents, size):
    """Lists of documents (text, position) of about `size` characters each."""
    batch, length = [], 0
    for text, position in documents:
        batch.append((text, position))
        length += len(text)
        if length >= size:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def encode_all(batches, config):
    """For each batch, in order: (number of documents, position after them, their ids as bytes, by split)."""
    processes = config.processes or os.cpu_count()
    start = config.tokenizer, config.val_share
    if processes == 1:
        start_worker(*start)
        for batch in batches:
            yield len(batch), batch[-1][1], encode([text for text, _ in batch])
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=start_worker, initargs=(*start, True)) as pool:
        waiting: deque[tuple[int, int, Future]] = deque()  # bounded, or reading would run ahead of encoding
        try:
            while True:
                for batch in islice(batches, 2 * processes - len(waiting)):
                    waiting.append((len(batch), batch[-1][1], pool.submit(encode, [text for text, _ in batch])))
                if not waiting:
                    return
                count, position, ids = waiting.popleft()
                yield count, position, ids.result()
        except BrokenProcessPool:
            raise ValueError("a process that encodes was killed (out of memory?): run it again to go on") from None
        finally:
            pool.shutdown(cancel_futures=True)


def start_worker(path, val_share, ignore_interrupts=False):
    """What `encode` needs, once in each process."""
    global worker
    if ignore_interrupts:  # Ctrl-C is the first process's business
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = load_tokenizer(path), val_share


def encode(texts):
    """Texts -> {"train": ids as bytes, "val": ...}, each text with the token that ends it."""
    tokenizer, val_share = worker
    ids = {name: [np.zeros(0, np.int64)] for name in SPLITS}
    for text in texts:
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        ids["val" if is_held_out(text, val_share) else "train"] += [tokenizer.encode_array(text), end]
    return {name: np.concatenate(parts).astype(id_type(tokenizer)).tobytes() for name, parts in ids.items()}


def is_held_out(text, val_share):
    """True for val_share of all texts: a function of the text alone."""
    number = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(number) < val_share * 2**64


OPEN = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


def text_files(source, pattern="*"):
    """The files that `source` stands for: itself, or, of a folder, all in it that match. Raises ValueError if none."""
    source = Path(source)
    if source.is_file():
        return [source]
    if not source.exists():
        raise ValueError(f"there is no file or folder {source}")
    found = (path for path in source.rglob(pattern) if path.is_file())
    found = sorted(path for path in found if not any(p.startswith(".") for p in path.relative_to(source).parts))
    if not found:
        raise ValueError(f"no files like {pattern} in {source}")
    return found


def read_documents(files, separator="\n\n\n", key="text"):
    """The documents of files, (text, bytes of the files read so far), blank ones left out.

    Files may be compressed (.gz, .xz, .bz2). Each line of a .jsonl file is a document, an object whose text is at
    `key`; other files are text in UTF-8 with documents apart by `separator` ("": each file is one). Raises ValueError.
    """
    before = 0
    for path in files:
        kind = (path.with_suffix("") if path.suffix in OPEN else path).suffix
        try:
            with open(path, "rb") as raw, OPEN.get(path.suffix, lambda file: file)(raw) as content:
                file = io.TextIOWrapper(content, "utf-8-sig")
                for text in of_lines(file, path, key) if kind == ".jsonl" else cut(file, separator):
                    if text.strip():
                        yield text.strip("\n"), before + raw.tell()
        except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
            raise ValueError(f"cannot read {path}: {error}") from None
        before += path.stat().st_size


def of_lines(file, path, key):
    """The texts of a JSONL file, one a line."""
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)[key]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: no object with a text at {key!r} ({error!r})") from None
        if not isinstance(text, str):
            raise ValueError(f"{path}, line {number}: no text at {key!r}")
        yield text


def cut(file, separator, size=2**20):
    """The stretches of a text file between separators, read bit by bit."""
    if not separator:
        yield file.read()
        return
    held = [""]  # the stretch that is not over yet, in pieces
    while chunk := file.read(size):
        *whole, rest = (held.pop() + chunk).split(separator)
        for stretch in whole:
            yield "".join([*held, stretch])
            held = []
        safe = max(0, len(rest) - len(separator) + 1)  # what follows may be the rest of a separator
        held += [rest[:safe], rest[safe:]]
    yield "".join(held)


def hub_documents(name, subset, revision):
    """`documents`, as prepare_text wants it, of a dataset on the Hugging Face hub (or in a folder of that kind)."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError("this corpus is streamed by the package datasets: pip install datasets") from None
    stream = load_dataset(name, subset, split="train", streaming=True, revision=revision)

    def documents(skip):
        for n, row in enumerate(stream.skip(skip), skip + 1):
            yield row["text"], n

    return documents


def report(out, prepare):
    """Call prepare() -> meta and say what came of it; an error or Ctrl-C ends the program with one line."""
    try:
        meta = prepare()
    except KeyboardInterrupt:
        sys.exit(f"prepare.py: stopped; run the same command again to go on with {out}")
    except (ValueError, OSError) as error:
        sys.exit(f"prepare.py: {error}")
    counts = ", ".join(f"{name} {count:,} tokens" for name, count in meta["tokens"].items())
    print(f"{out}: {meta['documents']:,} documents, {counts}")


@dataclass
class HubConfig:
    dataset: str = ""  # its name on the Hugging Face hub; if not given: this corpus's
    subset: str = ""  # of the dataset; if not given: this corpus's
    revision: str = "main"  # branch, tag or commit on the hub: a commit fixes the text for good
    out: str = ""  # folder to write; if not given: that of prepare.py


def prepare_hub(description, **defaults):
    """The command line of a corpus on the hub. max_tokens is 20 million if not said otherwise."""
    config, tokenize, given = from_cli(description, HubConfig, TokenizeConfig)
    config = replace(config, **{name: value for name, value in defaults.items() if name not in given})
    tokenize.max_tokens = given.get("max_tokens", 20_000_000)
    source = {"dataset": config.dataset, "subset": config.subset, "revision": config.revision}

    def prepare():
        documents = hub_documents(config.dataset, config.subset or None, config.revision)
        return prepare_text(documents, config.out, source, tokenize, unit=" documents")

    report(config.out, prepare)

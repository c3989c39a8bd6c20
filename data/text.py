"""
From documents to a dataset (see data/dataset.py), for texts of any size.

  prepare_text     encodes documents in several processes; only a few megabytes of text are in memory at any time.
                   Interrupted, it goes on when called again: progress.json says which documents are in, and how long
                   train.bin and val.bin were then, with their checksums. What was written later is cut off and done
                   anew
  read_documents   the documents of text and JSONL files

Documents are never cut in two. Whether one is held out is decided by a hash of its own text: by nothing else, so that
all its copies are on the same side.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import multiprocessing
import os
import signal
import sys
import threading
import zlib
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.dataset import checksum, id_type, open_dataset, write_meta
from lib.config import one_line_errors
from lib.files import lock, parse_json, read_json, reading, reason, write_json
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
    out.mkdir(parents=True, exist_ok=True)
    with lock(out):
        meta, done = what_is_there(out, plan)
        if meta is None:
            size = np.dtype(id_type(tokenizer)).itemsize
            write_documents(documents, out, config, total, unit, done, size)
            counts = {name: done["bytes"][name] // size for name in SPLITS}
            if not all(counts.values()):
                (out / "progress.json").unlink()
                raise ValueError(
                    f"of {done['documents']} documents, none became {' or '.join(n for n in SPLITS if not counts[n])}: "
                    "more documents are wanted (where does one end? --separator), or another --val_share"
                )
            more = {
                "document_end": tokenizer.eos_id,
                "answers": None,
                "documents": done["documents"],
                "plan": plan,
            }
            meta = write_meta(out, counts, done["checksums"], tokenizer, **more)
        (out / "progress.json").unlink(missing_ok=True)
    return meta


def write_documents(documents, out, config, total, unit, done, size):
    """Go on from how far it came, `done`, to the end. size: bytes of an id."""
    files = {name: open(out / f"{name}.bin", "ab") for name in SPLITS}
    try:
        for name, file in files.items():
            file.truncate(done["bytes"][name])
        save_progress(out, done, files)
        batches = in_batches(documents(done["documents"]), BATCH)
        bar = tqdm(
            total=total,
            initial=done["position"],
            unit=unit,
            unit_scale=True,
            desc=str(out),
            disable=None,
        )
        for n, (count, position, ids) in enumerate(encode_all(batches, config), 1):
            for name in SPLITS:
                done["bytes"][name] += files[name].write(ids[name])
                done["checksums"][name] = zlib.crc32(ids[name], done["checksums"][name])
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


def what_is_there(out, plan):
    """(meta, None) of a dataset that is complete, or (None, how far it came). Raises ValueError if it is another."""
    begin = {"plan": plan, "documents": 0, "position": 0}
    begin |= {"bytes": dict.fromkeys(SPLITS, 0), "checksums": dict.fromkeys(SPLITS, 0)}
    shape = {
        **dict.fromkeys(("documents", "position"), int),
        **dict.fromkeys(("bytes", "checksums"), {str: int}),
    }
    for name, wanted in (("meta.json", {"documents": int}), ("progress.json", shape)):
        if (out / name).exists():
            try:
                found = read_json(out / name, {"plan": dict, **wanted})
            except ValueError:
                found = {}
            if found.get("plan") != plan:
                raise ValueError(
                    f"{out} holds another dataset ({name}): delete it, or choose another --out"
                )
            with reading(out, f"cannot be gone on with: delete {out / name}, and it begins anew"):
                if name == "meta.json":
                    return open_dataset(out, "train") and open_dataset(out, "val").meta, None
                for split in (
                    SPLITS
                ):  # what was written after that is cut off; nothing may be missing before it
                    with open(out / f"{split}.bin", "rb") as file:
                        if checksum(file, found["bytes"][split]) != found["checksums"][split]:
                            raise ValueError(f"{split}.bin is not what it was")
                return None, found
    return None, begin


def save_progress(out, done, files):
    for file in files.values():
        file.flush()
        os.fsync(file.fileno())
    write_json(out / "progress.json", done)


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
    processes = min(config.processes or os.cpu_count(), 256)
    start = config.tokenizer, config.val_share
    if processes == 1:
        start_worker(*start)
        for batch in batches:
            yield len(batch), batch[-1][1], encode([text for text, _ in batch])
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, context, initializer=start_worker, initargs=(*start, True)
    ) as pool:
        waiting: deque[tuple[int, int, Future]] = (
            deque()
        )  # bounded, or reading would run ahead of encoding
        try:
            while True:
                for batch in islice(batches, 2 * processes - len(waiting)):
                    waiting.append(
                        (len(batch), batch[-1][1], pool.submit(encode, [text for text, _ in batch]))
                    )
                if not waiting:
                    return
                count, position, ids = waiting.popleft()
                yield count, position, ids.result()
        except BrokenProcessPool:
            raise ValueError(
                "a process that encodes was killed (out of memory?): run it again to go on"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def start_worker(path, val_share, of_many=False):
    """What `encode` needs, once in each process."""
    global worker
    if of_many:  # Ctrl-C is the first process's business; if that is killed, nobody would tell this one to end
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        wait = multiprocessing.parent_process().join
        threading.Thread(target=lambda: (wait(), os._exit(1)), daemon=True).start()
    worker = load_tokenizer(path), val_share


def encode(texts):
    """Texts -> {"train": ids as bytes, "val": ...}, each text with the token that ends it."""
    tokenizer, val_share = worker
    ids = {name: [np.zeros(0, np.int64)] for name in SPLITS}
    for text in texts:
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        ids["val" if is_held_out(text, val_share) else "train"] += [
            tokenizer.encode_array(text),
            end,
        ]
    return {
        name: np.concatenate(parts).astype(id_type(tokenizer)).tobytes()
        for name, parts in ids.items()
    }


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
    found = sorted(
        path for path in found if not any(p.startswith(".") for p in path.relative_to(source).parts)
    )
    if not found:
        raise ValueError(f"no files like {pattern} in {source}")
    return found


def read_documents(files, separator="\n\n\n", key="text"):
    """The documents of files, (text, bytes of the files read so far), blank ones left out.

    Files may be compressed (.gz, .xz, .bz2). Where a file holds JSON lines, each is a document, an object whose text is
    at `key`; other files are text in UTF-8 with documents apart by `separator` ("": each file is one). Raises
    ValueError.
    """
    before = 0
    for path in files:
        with reading(path, "cannot be read"):
            as_json = holds_json_lines(path, key)
            with open(path, "rb") as raw, open_text(raw, path) as file:
                for text in of_lines(file, key) if as_json else cut(file, separator):
                    if text.strip():
                        yield text.strip("\n"), before + raw.tell()
            before += path.stat().st_size


def open_text(raw, path):
    if path.suffix in OPEN and not path.stat().st_size:
        raise ValueError("it is empty, which no compressed file is")
    return io.TextIOWrapper(OPEN.get(path.suffix, lambda file: file)(raw), "utf-8-sig")


def holds_json_lines(path, key):
    """By its name; or by its first line, which is said."""
    if (path.with_suffix("") if path.suffix in OPEN else path).suffix in (
        ".jsonl",
        ".json",
        ".ndjson",
    ):
        return True
    with open(path, "rb") as raw, open_text(raw, path) as file:
        try:
            parse_json(file.readline(2**26), {key: str})
        except ValueError:
            return False
    print(f"{path} holds JSON lines: of each, the text at {key!r} is taken", file=sys.stderr)
    return True


def of_lines(file, key):
    """The texts of a JSONL file, one a line."""
    for number, line in enumerate(file, 1):
        if line.strip():
            try:
                yield parse_json(line, {key: str})[key]
            except ValueError as error:
                raise ValueError(
                    f"line {number}: no object with a text at {key!r}, {reason(error)}"
                ) from None


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


def report(out, prepare):
    """Call prepare() -> meta and say what came of it; an error or Ctrl-C ends the program with one line."""
    with one_line_errors("prepare.py", f"stopped; run the same command again to go on with {out}"):
        meta = prepare()
        counts = ", ".join(f"{name} {count:,} tokens" for name, count in meta["tokens"].items())
        print(f"{out}: {meta['documents']:,} documents, {counts}")

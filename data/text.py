"""
From documents to a dataset (see data/dataset.py), for texts of any size: a few megabytes of them
are in memory at a time. Documents are never cut in two. Whether one is held out is decided by a
hash of its own text, so that all copies of it are on the same side. A dataset is there when it is
complete: if the preparation is interrupted, the same command begins again.
"""

import bz2
import gzip
import hashlib
import io
import lzma
import sys
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.dataset import id_type, read_meta, write_meta
from lib.config import one_line_errors
from lib.files import lock, parse_json, reading
from lib.tokenizer import load_tokenizer

OPEN = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}


@dataclass
class TokenizeConfig:
    tokenizer: str = "weights/mistral-7b"  # a tokenizer file, or a folder of weights that has one
    val_share: float = 0.01  # share of the documents held out
    max_tokens: int = 0  # stop when this many are written, of both splits; 0: never

    def __post_init__(self):
        if not 0 < self.val_share < 1:
            raise ValueError(f"val_share must lie between 0 and 1, not {self.val_share}")


def prepare_text(documents, out, source, config, total=None, unit="B"):
    """Encode documents into the folder `out`, and say what was written.

    documents   an iterable of (text, how much of the source was read by then)
    source      where they come from, of plain types: a folder of another source is refused
    total       of the source, for the progress bar; its unit

    An error, or Ctrl-C, ends the program with one line.
    """
    again = f"stopped: the same command begins again in {out}"
    with one_line_errors("prepare.py", again), ExitStack() as held:
        out, tokenizer = Path(out), load_tokenizer(config.tokenizer)
        plan = {"source": source, "tokenizer": tokenizer.to_json(), "val_share": config.val_share}
        plan["max_tokens"] = config.max_tokens
        out.mkdir(parents=True, exist_ok=True)
        held.enter_context(lock(out))
        if not (out / "meta.json").exists():
            write_documents(documents, out, tokenizer, config, plan, total, unit)
        meta = read_meta(out)
        if meta.get("plan") != plan:
            raise ValueError(f"{out} holds another dataset: delete it, or choose another --out")
        counts = [f"{name} {count:,} tokens" for name, count in meta["tokens"].items()]
        print(f"{out}: {meta['documents']:,} documents, {', '.join(counts)}")
        if meta["tokens"]["val"] < 257:
            print("so little held-out text is less than a span of 256 tokens: another --separator or "
                  "a larger --val_share may give more")  # fmt: skip


def write_documents(documents, out, tokenizer, config, plan, total, unit):
    """Write the splits under temporary names, rename them, and write meta.json last."""
    counts, checksums, number = {"train": 0, "val": 0}, {"train": 0, "val": 0}, 0
    end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    temporary = {name: out / f"{name}.bin.tmp" for name in counts}
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(path, "wb")) for name, path in temporary.items()}
        how = {"total": total, "unit": unit, "unit_scale": True, "desc": str(out), "disable": None}
        bar = stack.enter_context(tqdm(**how))
        for number, (text, position) in enumerate(documents, 1):
            ids = np.concatenate([tokenizer.encode_array(text), end]).astype(id_type(tokenizer))
            name = "val" if is_held_out(text, config.val_share) else "train"
            files[name].write(ids.tobytes())
            checksums[name] = zlib.crc32(ids.tobytes(), checksums[name])
            counts[name] += len(ids)
            bar.update(position - bar.n)
            if config.max_tokens and sum(counts.values()) >= config.max_tokens:
                break
    if not all(counts.values()):
        raise ValueError(
            f"{number} documents are too few, one split has none: where does one end (--separator)?"
        )
    for name, path in temporary.items():
        path.replace(out / f"{name}.bin")
    more = {"document_end": tokenizer.eos_id, "documents": number, "plan": plan}
    write_meta(out, counts, checksums, tokenizer, **more)


def is_held_out(text, val_share):
    """True for val_share of all texts: a function of the text alone."""
    number = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(number) < val_share * 2**64


def text_files(source, pattern="*"):
    """The files that `source` is, or has in it. Raises ValueError if there are none."""
    source = Path(source)
    if source.is_file():
        return [source]
    hidden = [path for path in source.rglob(".*")]
    files = [path for path in sorted(source.rglob(pattern)) if path.is_file()]
    files = [path for path in files if not any(path.is_relative_to(h) for h in hidden)]
    if not files:
        raise ValueError(f"there is no file {source}, and no folder of files like {pattern}")
    return files


def read_documents(files, separator="\n\n\n", key="text"):
    """The documents of files, (text, bytes of the files read so far), blank ones left out.

    Files may be compressed (.gz, .xz, .bz2). In JSON lines (.jsonl, .json, .ndjson) each is a
    document, an object whose text is at `key`. Others are UTF-8 text, documents apart by
    `separator` ("": each file is one). Of several files, one that is not UTF-8 is named and left
    out. Raises ValueError.
    """
    before = 0
    for path in files:
        with reading(path, "cannot be read"), open(path, "rb") as raw:
            opened = OPEN.get(path.suffix, lambda file: file)(raw)
            file = io.TextIOWrapper(opened, "utf-8-sig")
            name = path.with_suffix("") if path.suffix in OPEN else path
            as_json = name.suffix in (".jsonl", ".json", ".ndjson")
            try:
                for text in of_lines(file, key) if as_json else cut(file, separator):
                    if text.strip():
                        yield text.strip("\n"), before + raw.tell()
            except UnicodeDecodeError:
                if len(files) == 1:
                    raise
                print(f"{path} is not UTF-8: left out from there on", file=sys.stderr)
        before += path.stat().st_size


def of_lines(file, key):
    """The texts of a JSONL file, one a line."""
    for number, line in enumerate(file, 1):
        if line.strip():
            with reading(f"line {number}", f"is no object with a text at {key!r}"):
                text = parse_json(line, {key: str})[key]
            yield text


def cut(file, separator, size=2**20):
    """The stretches of a text file between separators, read bit by bit."""
    rest = ""
    while chunk := file.read(size if separator else -1):
        *stretches, rest = (rest + chunk).split(separator) if separator else [rest + chunk]
        yield from stretches
    yield rest

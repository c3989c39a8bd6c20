"""
What comes of a mutant (see mutants.py), in one word:

  right       its content is read all the same
  line        one line says what is wrong, and with which file
  other       it is read as something else: what a damaged text may well be, but nothing that has a checksum
  nonsense    something else, with a number that is not finite or of more than 63 bits, a wrong type or checksum
  nameless    one line, but it names no file
  long        a line of more than 600 characters, or several lines
  traceback   any other exception
  slow, big   more than 5 seconds of work, more than 1 GB of memory: whatever came of it
"""

import contextlib
import io
import math
import os
import random
import re
import shutil
import signal
import tempfile
import time
import traceback
from dataclasses import dataclass, is_dataclass
from pathlib import Path

import numpy as np
import torch
from mutants import ANOTHER_TYPE, ANY, MUTATIONS

FAILURES = ("nonsense", "nameless", "long", "traceback", "slow", "big")
SECONDS, BYTES, CHARACTERS = 5, 2**30, 600
STOPPED = "it took so long that it was stopped"


@dataclass
class Outcome:
    kind: str
    mutation: str
    seed: int
    did: str  # what the mutation did, in words
    word: str
    said: str

    def __str__(self):
        line = f"{self.word}: again({self.kind!r}, {self.mutation!r}, {self.seed}) [{self.did}] {self.said}"
        return line.encode("utf-8", "backslashreplace").decode()


class Samples:
    """The samples of all kinds, each made once, in a folder of their own."""

    def __init__(self):
        self.folder, self.right = tempfile.TemporaryDirectory(prefix="faults"), {}

    def of(self, kind):
        """The folder of a kind's sample, and what its reader finds there."""
        folder = Path(self.folder.name, kind.make.__name__)
        if not folder.exists():
            folder.mkdir()
            with inside(folder), silence():
                kind.make()
        if kind.name not in self.right:
            with copy_of(folder), silence():
                self.right[kind.name] = kind.read()
        return folder, self.right[kind.name]


@contextlib.contextmanager
def inside(folder):
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def copy_of(folder):
    """In a fresh copy of a folder, so that whatever is done there is gone afterwards."""
    copy = Path(f"{folder}.copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    with inside(copy):
        yield
    shutil.rmtree(copy, ignore_errors=True)


@contextlib.contextmanager
def silence():
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as said,
    ):
        yield said


def most_memory():
    """The most bytes that this process had in use since it last asked."""
    found = int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    Path("/proc/self/clear_refs").write_text("5")
    return found


def mutant_of(kind, mutation, seed):
    """Make the sample in this folder wrong; what was done, in words, or None."""
    rng = random.Random(f"{kind.name} {mutation} {seed}")
    return MUTATIONS[kind.form][mutation](Path(kind.file), rng)


def outcome_of(kind, mutation, seed, samples):
    folder, right = samples.of(kind)
    with copy_of(folder):
        did = mutant_of(kind, mutation, seed)
        word, said = asked(kind.read, right, Path(kind.file), kind.checked and mutation in ANY)
    if word == "other" and not kind.lenient and did.endswith(ANOTHER_TYPE):
        word, said = "nonsense", "it is taken for what it is not"
    return Outcome(kind.name, mutation, seed, did, word, said)


def asked(read, right, path, checked):
    """(word, what was said) of a reader that is asked for `path`. It is stopped when it takes very long."""
    most_memory()
    before, start = most_memory(), time.process_time()
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(12 * SECONDS)
    try:
        with silence() as stderr:
            found = read()
        word, said = ("right", "") if same(found, right) else ("other", "")
        if word == "other":
            wrong = nonsense(found) or (checked and "its checksum should have told")
            word, said = ("nonsense", wrong) if wrong else ("other", "")
    except (ValueError, OSError) as error:
        word, said = judged(str(error), path)
    except SystemExit as stop:
        word, said = judged(
            stop.code if isinstance(stop.code, str) else stderr.getvalue().removesuffix("\n"), path
        )
    except BaseException as error:  # a panic in tiktoken, for one, is no Exception
        where = [
            f"{Path(at.filename).name}:{at.lineno}"
            for at in traceback.extract_tb(error.__traceback__)[1:]
        ]
        word, said = (
            "traceback",
            f"{type(error).__name__}: {str(error)[:200]!r} ({' '.join(where[-6:])})",
        )
    finally:
        signal.alarm(0)
    seconds, more = time.process_time() - start, most_memory() - before
    slow = seconds > SECONDS or STOPPED in said
    if slow or more > BYTES:
        word, said = (
            "slow" if slow else "big",
            f"{seconds:.1f} s, {more / 2**20:,.0f} MiB, {word}: {said}",
        )
    return word, said


def too_long(*_):
    raise TimeoutError(STOPPED)


def judged(line, path):
    """(word, line) of what a reader says about `path`."""
    if "\n" in line or len(line) > CHARACTERS:
        return "long", f"{len(line)} characters, {line.count(chr(10)) + 1} lines: {line[:200]!r}"
    names = path.name in line or path.parent.name in line
    return ("line" if names else "nameless"), line


def same(a, b):
    """Are two contents equal, to the last bit?"""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        )
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and (a == b or a != a and b != b)


def nonsense(value):
    """What is not finite, or of more than 63 bits, in a content; or None."""
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, dict | list | tuple):
        inside = value.values() if isinstance(value, dict) else value
        return next((found for found in map(nonsense, inside) if found), None)
    if isinstance(value, torch.Tensor):
        return (
            None
            if value.isfinite().all()
            else f"a tensor {tuple(value.shape)} with a number that is not finite"
        )
    big = isinstance(value, int) and abs(value) >= 2**63
    return (
        f"it holds {str(value)[:30]}"
        if big or isinstance(value, float) and not math.isfinite(value)
        else None
    )

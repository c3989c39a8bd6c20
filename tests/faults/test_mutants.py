"""
Every kind of file that a user hands to the project, damaged in every way: it is read all the same,
or refused with one line that names it. Never is there a traceback, a hang or a wrong result.

    python -m pytest tests/faults/test_mutants.py             a few mutants of each kind of file
    python -m pytest tests/faults/test_mutants.py -m slow     10,000 in all
"""

import contextlib
import io
import json
import random
import shutil
import signal
import time
import traceback
from pathlib import Path

import pytest
from kinds import KINDS, make_samples
from mutants import ANY, MUTATIONS

FEW, MANY = 12, 10_000 // len(KINDS)
SECONDS, CHARACTERS = 5, 600

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="it needs an alarm clock")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    with contextlib.chdir(folder):
        make_samples()
    return folder


@contextlib.contextmanager
def copy_of(samples):
    """In here, the working directory is a copy of the samples."""
    copy = Path(f"{samples}_copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(samples, copy)
    with contextlib.chdir(copy):
        yield


def problem(read, path, right):
    """What is wrong with how a damaged file is read, or None. right: its content as JSON, if the
    damage must have been noticed; None: it may be another one now."""
    start, stderr = time.process_time(), io.StringIO()
    content = line = None
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.alarm(12 * SECONDS)
    try:
        with contextlib.redirect_stderr(stderr):
            content = json.dumps(read(path), allow_nan=False)
    except (ValueError, OSError) as error:
        line = str(error)
    except SystemExit as error:
        line = error.code if isinstance(error.code, str) else stderr.getvalue().rstrip("\n")
    except BaseException as error:  # a panic in tiktoken is no Exception
        return "".join(traceback.format_exception(error)[-5:])
    finally:
        signal.alarm(0)
    seconds = time.process_time() - start
    if seconds > SECONDS:
        return f"{seconds:.0f} seconds, then: {line}"
    if line is None:
        return "it is read as something else" if right not in (None, content) else None
    if "\n" in line or len(line) > CHARACTERS:
        return f"a line of {len(line)} characters: {line[:200]!r}"
    folder = "--" if path.parent == Path("my") else str(path.parent)  # or a flag, of a single file
    return None if path.name in line or folder in line else f"a line that does not name it: {line}"


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file, read, form", KINDS)
def test_mutants(file, read, form, count, samples):
    """Catches a reader without a check: it shows the user a traceback, hangs, or takes nonsense."""
    (path,) = [path.relative_to(samples) for path in (samples / "my").glob(file)]
    with copy_of(samples):
        right = json.dumps(read(path), allow_nan=False)
    mutations, problems = list(MUTATIONS[form].items()), []
    for number in range(count):
        name, mutate = mutations[(number + len(file)) % len(mutations)]
        noticed = name == "type" or form in ("sealed", "torch") and name in ANY
        with copy_of(samples):
            mutate(path, random.Random(f"{file} {name} {number}"))
            found = problem(read, path, right if noticed else None)
        if found:
            problems.append(f"{name}, {number}: {found}")
    assert not problems, "\n".join([f"{len(problems)} of {count} mutants of {file}:", *problems])

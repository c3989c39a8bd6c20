"""Source files that are fixed: fetched once, kept whole, and known by their SHA-256."""

import hashlib
import http.client
import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lib.config import run_script
from lib.files import lock, parse_json, reading, reason, replace_file


def fetch(url, path, sha256):
    """The content of `path`, bytes, downloaded from url first if it is not there. Raises
    ValueError, in one line, if it cannot be had or is not the file expected. sha256=None: any file
    will do."""
    path = Path(path)
    if path.exists():
        content = path.read_bytes()
        if sha256 and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"{path} is not the file expected: its SHA-256 differs")
        return content
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(
            f"cannot download {url} ({reason(error)}): fetch it yourself and give --source=FILE"
        ) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{url} is no longer the file expected (its SHA-256 differs)")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)
    return content


def read_source(source, url, path, sha256):
    """A copy of the user's, `source`, with the same hash; or, if that is empty, what `fetch`
    gives."""
    if source and not Path(source).is_file():
        raise ValueError(f"there is no file {source}")
    return fetch(url, source or path, sha256)


def json_lines(content, path, convert):
    """[convert(line) for each line] of JSON Lines, bytes. Raises ValueError, in one line, with the
    number of the line that is not as convert wants it."""
    found = []
    for number, line in enumerate(content.decode("utf-8", "replace").split("\n"), 1):
        if line.strip():
            with reading(f"{path}, line {number}", "is no question"):
                found.append(convert(parse_json(line)))
    if not found:
        raise ValueError(f"{path} is empty")
    return found


@dataclass
class QuestionsSource:
    out: str = ""  # folder to write; empty: that of prepare.py
    source: str = ""  # the file, if you have it; empty: download it
    any_hash: bool = False  # take a source that is not the official one


def prepare_questions(description, folder, url, name, sha256, convert):
    """The command line of a set of questions: from a source, JSON Lines, to questions.jsonl in
    `folder`. An error ends it all with one line."""

    def prepare(config):
        out = Path(config.out or folder)
        out.mkdir(parents=True, exist_ok=True)
        _held = lock(out)  # until this function returns
        content = read_source(
            config.source, url, out / name, None if config.source and config.any_hash else sha256
        )
        questions = json_lines(content, config.source or out / name, convert)
        lines = "".join(json.dumps(q) + "\n" for q in questions)
        replace_file(out / "questions.jsonl", lines.encode())
        print(f"{out}: {len(questions):,} questions")

    run_script("prepare.py", description, prepare, QuestionsSource)

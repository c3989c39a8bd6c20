"""Source files that never change: downloaded once, and known by their SHA-256."""

import hashlib
import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from lib.config import run_script
from lib.files import parse_json, reading, replace_file


def read_source(source, url, path, sha256, any_hash=False):
    """The bytes of the file `source`, or, if that is empty, of `path`, to which url is downloaded
    if it is not there. ValueError if they have another SHA-256; any_hash: a source may."""
    path = Path(source or path)
    missing = not source and not path.exists()
    if missing:
        problem = "cannot be downloaded: fetch it yourself and name the file (--help)"
        with reading(url, problem), urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()
    else:
        with reading(path, "cannot be read"):
            content = path.read_bytes()
    if not (source and any_hash) and hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} is not the official file: its SHA-256 differs")
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, content)
    return content


def json_lines(content, path, convert):
    """[convert(line) for each line] of JSON Lines, bytes. Raises ValueError, which names the line
    that cannot be converted."""
    rows = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            with reading(f"{path}, line {number}", "is not as wanted"):
                rows.append(convert(parse_json(line)))
    if not rows:
        raise ValueError(f"{path} is empty")
    return rows


@dataclass
class QuestionsSource:
    out: str = ""  # folder to write; empty: that of prepare.py
    source: str = ""  # the file, if you have it; empty: download it
    any_hash: bool = False  # take a source that is not the official one


def prepare_questions(description, folder, url, sha256, convert):
    """The command line of a set of questions, JSON Lines: from its source to questions.jsonl."""

    def prepare(config):
        out = Path(config.out or folder)
        path = out / url.split("/")[-1]
        content = read_source(config.source, url, path, sha256, config.any_hash)
        questions = json_lines(content, config.source or path, convert)
        lines = "".join(json.dumps(question) + "\n" for question in questions)
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / "questions.jsonl", lines.encode())
        print(f"{out}: {len(questions):,} questions")

    run_script("prepare.py", description, prepare, QuestionsSource)

"""
Files that are whole or not there, and JSON that is what it should be.
"""

import json
import os
from pathlib import Path


def replace_file(path, content):
    """Write bytes to a file, whole or not at all."""
    write_whole(path, lambda file: file.write(content))


def write_whole(path, write):
    """Let write(file) write under a temporary name, make sure it is on disk, and rename: never a half-written file."""
    temporary = Path(f"{path}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # a full disk, say: what is half-written only takes up room
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)


def read_json(path):
    """The JSON object in a file, a dict. Raises ValueError, in one line, if there is none."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content

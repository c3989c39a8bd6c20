"""The simplest tokenizer.json: a token's id is its byte; 256 ends a text, 257 begins one."""

import json
from pathlib import Path

from lib.tokenizer_files import byte_characters


def write_byte_tokenizer(folder):
    """Write it into a folder and return its path."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    special = [{"id": 256, "content": "</s>"}, {"id": 257, "content": "<s>"}]
    split = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    model = {"vocab": {char: b for b, char in byte_characters().items()}, "merges": []}
    content = {"added_tokens": special, "normalizer": None, "pre_tokenizer": split, "model": model}
    path = Path(folder) / "tokenizer.json"
    path.write_text(json.dumps(content), "utf-8")
    return path

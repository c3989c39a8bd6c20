"""Source files that are fixed: fetched once, kept whole, and known by their SHA-256."""

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

from data.dataset import replace_file


def fetch(url, path, sha256):
    """The content of `path`, bytes, downloaded from url first if it is not there. Raises ValueError, in one line, if it
    cannot be had or is not the file expected."""
    path = Path(path)
    if path.exists():
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"{path} is not the file expected (its SHA-256 differs): delete it and run this again")
        return content
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            content = response.read()
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(f"cannot download {url} ({error}): fetch it yourself and give --source=FILE") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{url} is no longer the file expected (its SHA-256 differs)")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, content)
    return content


def read_source(source, url, path, sha256):
    """A copy of the user's, `source`, with the same hash; or, if that is empty, what `fetch` gives."""
    if source and not Path(source).is_file():
        raise ValueError(f"there is no file {source}")
    return fetch(url, source or path, sha256)

"""
Files: written completely or not at all, and read so that a damaged one is named in one line.
"""

import json
import math
import os
import sys
import typing
from contextlib import contextmanager, suppress
from pathlib import Path

KINDS = {  # what a folder holds, by the files that only it has
    "run": ("checkpoint_*.pt", "log.jsonl"),
    "weights": ("params.json", "consolidated*", "*.safetensors", "pytorch_model*.bin"),
    "dataset": ("meta.json",),
}


def folder_kind(folder):
    """The set of what a folder holds: "run", "weights", "dataset"; empty if it holds none of
    them. A config.json alone is a run that was only just begun; weights may have one, too."""
    folder = Path(folder)
    kinds = {kind for kind, names in KINDS.items() if any(any(folder.glob(x)) for x in names)}
    if "weights" not in kinds and (folder / "config.json").exists():
        kinds.add("run")
    return kinds


def write_whole(path, write):
    """Let write(file) fill a temporary file, flush it to disk, and rename it to `path`: whatever
    happens, there is the old file or the new one, never half of one. Raises OSError."""
    temporary = Path(f"{path}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb") as file:  # a new file: a link planted there is not followed
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError | RuntimeError):  # torch.save: RuntimeError on a full disk
            raise OSError(f"cannot write {path}: {reason(error)}") from None
        raise


def replace_file(path, content):
    """Write bytes to a file, completely or not at all. Raises OSError."""
    write_whole(path, lambda file: file.write(content))


def write_json(path, value):
    """Write a value as JSON, completely or not at all. Raises OSError."""
    replace_file(path, json.dumps(value, indent=1).encode())


def open_to_append(path):
    """A file to add bytes to. Raises OSError if there is a link or a pipe, which is not followed
    (Windows has no such flags)."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return open(path, "ab", buffering=0, opener=lambda *how: os.open(how[0], how[1] | flags, 0o666))


def one_line(text, most=600):
    """The text in one line of at most so many characters, all of which a terminal can print."""
    text = " ".join(str(text).split())[:most]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(error):
    """What an error says, in one line of at most 200 characters."""
    text = one_line(getattr(error, "strerror", None) or error, 200)
    plain = type(error) is ValueError or isinstance(error, OSError)
    return text if plain else f"{type(error).__name__}: {text}"


@contextmanager
def reading(path, problem="is damaged or cut short"):
    """In here, any error becomes a ValueError in one line that begins with `path`. Raises it at
    once if there is a pipe or a device, which may have no end."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise ValueError(f"{path} is no regular file")
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except ImportError as error:
        raise ValueError(f"{path} wants a package: pip install {error.name}") from None
    except BaseException as error:  # a panic in tiktoken is no Exception
        raise ValueError(f"{path} {problem} ({reason(error)})") from None


def read_json(path, wanted=dict, problem="cannot be read"):
    """The JSON in a file, of the wanted shape (see `check`). Raises ValueError."""
    with reading(path, problem):
        return parse_json(Path(path).read_bytes(), wanted)


def parse_json(text, wanted=dict):
    """The JSON in a string or bytes, of the wanted shape. Raises ValueError."""
    value = json.loads(text)
    check(value, wanted)
    return value


def check(value, wanted, name="it"):
    """Raise ValueError, which calls the value `name`, if it does not have the wanted shape:

    int, float, str, bool, dict, list     of this type; a float may be an int, and is finite
    int | None, Literal["one", "other"]   one of these
    [shape]                               a list of these
    {"key": shape}, {str: shape}          a dict with this key, or with any strings as keys
    """
    if isinstance(wanted, dict):
        check(value, dict, name)
        for key, shape in wanted.items():
            if key is not str and key not in value:
                raise ValueError(f"{name} has no {key!r}")
            for k in value if key is str else [key]:
                check(value[k], shape, k)
    elif isinstance(wanted, list):
        check(value, list, name)
        for x in value:
            check(x, wanted[0], f"an element of {name}")
    elif not any(matches(value, choice) for choice in typing.get_args(wanted) or [wanted]):
        kind = wanted.__name__ if isinstance(wanted, type) else wanted
        raise ValueError(f"{name} must be {kind}, not {one_line(repr(value), 80)}")


def matches(value, choice):
    """Is a value of a type, or is it one of the strings of a Literal?"""
    if choice not in (int, float):
        return isinstance(value, choice) if isinstance(choice, type) else value == choice
    limit = 2**63 if type(value) is int else math.inf
    return type(value) in (int, choice) and -limit < value < limit


def lock(folder, doing="writing"):
    """Claim a folder until the returned file is closed. Raises ValueError if another process has
    claimed it. Where locks do not exist (Windows, some network drives), nothing is claimed."""
    file = open_to_append(Path(folder) / "lock")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process is {doing} in {folder}: choose another --out") from None
    except (ImportError, OSError) as error:
        print(f"{folder} cannot be locked ({reason(error)}): start one process", file=sys.stderr)
    return file


def refuse_another(path, asked):
    """Raise ValueError, naming the setting, if a file holds results of other settings."""
    if Path(path).exists():
        problem = "does not say with what settings it was made: choose another --out"
        refuse_changes(path, read_json(path, {"asked": dict}, problem)["asked"], asked)


def refuse_changes(path, old, new, may_change=()):
    """Raise ValueError, naming the setting, if one differs between two dicts of settings."""
    for name, value in new.items():
        if name not in may_change and old.get(name) != value:
            was = f"{name}={one_line(repr(old.get(name)), 80)}"
            raise ValueError(f"{path} has results with {was}, not {value!r}: choose another --out")

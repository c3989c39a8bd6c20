"""
Files: written whole or not at all; read so that whatever is wrong with one is said in a line that names it.
"""

import json
import math
import os
import sys
import types
import typing
import zlib
from contextlib import contextmanager
from pathlib import Path


def replace_file(path, content):
    """Write bytes to a file, whole or not at all. Raises OSError."""
    write_whole(path, lambda file: file.write(content))


def write_json(path, value):
    """Write a value as JSON. Numbers that are not finite become null, for JSON has none."""
    replace_file(path, json.dumps(finite(value), indent=1, allow_nan=False).encode())


def finite(value):
    if isinstance(value, dict):
        return {key: finite(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path, write):
    """Let write(file) write under a temporary name, make sure it is on disk, and rename: never a half-written file.
    Raises OSError, in one line."""
    temporary = Path(f"{path}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with open(
            temporary, "xb"
        ) as file:  # made anew: whatever another user has put there is not followed
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if not temporary.is_dir():
            temporary.unlink(
                missing_ok=True
            )  # a full disk, say: what is half-written only takes up room
        if isinstance(
            error, OSError | RuntimeError
        ):  # torch.save makes a RuntimeError of a full disk
            raise OSError(f"cannot write {path}: {reason(error)}") from None
        raise


def reason(error):
    """What an error says, in one line that is not long."""
    text = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
    return (
        text
        if type(error) is ValueError or isinstance(error, OSError)
        else f"{type(error).__name__}: {text}"
    )


def absent(path, wanted):
    """One line about a file or folder that is not there: a name on a hub, perhaps."""
    path = Path(path)
    if len(path.parts) == 2 and not path.parent.exists():
        wanted = f"if that is a name on a hub: hf download {path} --local-dir=weights/{path.name}"
    return f"there is no {path}: {wanted}"


def brief(text):
    return " ".join(str(text).split())[:80]


@contextmanager
def reading(path, what=None):
    """In here, whatever damaged bytes can raise is one thing to the user: a ValueError, in one line, about `path`."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic in tiktoken, for one, is no Exception
        what = what or (
            "cannot be read" if isinstance(error, OSError) else "is damaged or cut short"
        )
        raise ValueError(f"{path} {what} ({reason(error)})") from None


def read_json(path, wanted=dict, what="cannot be read"):
    """The JSON in a file, of the shape that is wanted (see `check`). Raises ValueError, in one line."""
    with reading(path, what):
        return parse_json(Path(path).read_bytes(), wanted)


def parse_json(text, wanted=dict):
    """The same of a string or bytes. Raises ValueError."""
    try:
        value = json.loads(text)
        level = [value]
        for _ in range(100):
            level = [
                y
                for x in level
                if isinstance(x, dict | list)
                for y in (x.values() if isinstance(x, dict) else x)
            ]
    except RecursionError:
        level = [1]
    if level:
        raise ValueError("it is nested too deep")
    check(value, wanted)
    return value


def check(value, wanted, name="it"):
    """Raise ValueError if a value is not of the shape that is wanted:

    int, float, str, bool, dict, list, None   just that; a float may be an int, and is finite
    int | None, Literal["one", "other"]       one of these
    [shape]                                   a list of such
    {"key": shape}                            a dict that has these keys, and perhaps others;  {str: shape}: any keys
    """
    if isinstance(wanted, dict):
        check(value, dict, name)
        for key, shape in wanted.items():
            if key is not str and key not in value:
                raise ValueError(f"{name} has no {key!r}")
            for k in value if key is str else [key]:
                check(k, str, "a key")
                check(value[k], shape, brief(repr(k)))
    elif isinstance(wanted, list):
        check(value, list, name)
        for x in value:
            check(x, wanted[0], f"an element of {name}")
    elif not is_one(value, wanted):
        choices = (
            typing.get_origin(wanted) is typing.Literal
            and f"one of {', '.join(typing.get_args(wanted))}"
        )
        raise ValueError(
            f"{name} must be {choices or getattr(wanted, '__name__', wanted)}, not {brief(repr(value))}"
        )


def is_one(value, wanted):
    """Is a value of a type, as `check` wants it?"""
    if isinstance(wanted, types.UnionType):
        return any(is_one(value, kind) for kind in typing.get_args(wanted))
    if typing.get_origin(wanted) is typing.Literal:
        return value in typing.get_args(wanted)
    if wanted in (int, float):
        number = (
            type(value) is int
            and abs(value) < 2**63
            or type(value) is float
            and math.isfinite(value)
        )
        return number and (wanted is float or type(value) is int)
    return value is None if wanted in (None, types.NoneType) else isinstance(value, wanted)


def lock(folder, doing="writing"):
    """Claim a folder for this process, as long as it keeps the file open that is returned. Raises ValueError if
    another process has it. (Where there are no such locks, on Windows and some network drives, nothing is claimed.)"""
    if os.name == "nt":
        return open(os.devnull)
    import errno
    import fcntl

    file = os.fdopen(
        os.open(Path(folder) / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+"
    )
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            raise ValueError(
                f"another process is {doing} in {folder} right now: choose another --out"
            ) from None
        print(
            f"{folder} cannot be locked ({reason(error)}): let no other process write there",
            file=sys.stderr,
        )
    return file


def refuse_another(path, asked):
    """Raise ValueError if a file holds results of other settings: they are not overwritten."""
    what = "does not say with what settings it was made: choose another --out"
    old = read_json(path, {"asked": dict}, what)["asked"] if Path(path).exists() else asked
    for key, value in asked.items():
        if old.get(key) != value:
            was = brief(repr(old.get(key)))
            raise ValueError(
                f"{path} has results with {key}={was}, not {value!r}: choose another --out"
            )


def kept(path, about, make):
    """make(), a value that JSON can hold; or what it made before about the same, kept in a file with its checksum."""
    try:
        old = read_json(path)
    except ValueError:
        old = {}
    if old.get("about") != about or old.get("checksum") != zlib.crc32(
        json.dumps(old.get("value")).encode()
    ):
        old = {"about": about, "value": finite(make())}
        write_json(path, {**old, "checksum": zlib.crc32(json.dumps(old["value"]).encode())})
    return old["value"]

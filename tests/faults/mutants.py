"""
Mutants: a file made wrong in one way, and what its reader says to that.

A mutation is a function of a file's path and a random number generator. It changes the file in place and returns what
it did, in words; or it returns None, if there is nothing that it could change.
"""

import json
import zipfile
from dataclasses import dataclass

import torch


@dataclass
class Kind:
    """A kind of file: a sample of it, and how the project reads it."""

    name: str
    make: callable  # writes the sample, and what else is read with it, into the folder that it is called in
    file: str  # which file of these is made wrong
    read: callable  # what is in it, as the project reads it: plain values, arrays and tensors
    form: str = "bytes"  # json, jsonl, toml or torch: there are more ways to make such a file wrong
    checked: bool = False  # has it a checksum, so that damaged bytes are never taken for others?
    lenient: bool = False  # may what is damaged in it be left out?


# ----------------------------------------------------------------------------------------------------------------------
# any file: its bytes, and what lies in its place


def of_bytes(change):
    def mutate(path, rng):
        content = path.read_bytes()
        changed = change(bytearray(content), rng)
        path.write_bytes(bytes(changed))
        return "" if changed != content else None

    return mutate


def flip(content, rng, times=1):
    for _ in range(times):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


def flip_several(content, rng):
    return flip(content, rng, rng.randint(2, 20))


def cut(content, rng):
    return content[: rng.randrange(len(content))]


def a_slice(content, rng):
    start = rng.randrange(len(content))
    return start, min(len(content), start + rng.choice([1, 4, 30, 1000]))


def insert(content, rng):
    start, end = a_slice(content, rng)
    return content[:start] + rng.randbytes(end - start) + content[start:]


def double(content, rng):
    start, end = a_slice(content, rng)
    return (
        content[:end] + content[max(1, start) :]
    )  # twice all of it is a valid file, of some kinds


def zeros(content, rng):
    start, end = a_slice(content, rng)
    return content[:start] + bytes(end - start) + content[end:]


def in_place_of(what):
    def mutate(path, rng):
        path.unlink()
        what(path)
        return ""

    return mutate


def link_to_an_empty_file(path):
    (path.parent.parent / "empty").write_bytes(b"")
    path.symlink_to((path.parent.parent / "empty").resolve())


def another_kind(path, rng):
    others = {
        "json": b'{"a": 1}',
        "a list": b"[1, 2]",
        "a png": b"\x89PNG\r\n\x1a\n" + rng.randbytes(90),
        "text": "Es war einmal\n".encode("utf-16"),
        "a pickle": b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u.",
        "a page": b"<!DOCTYPE html><html><head><title>404: Not Found</title></head></html>\n",
        "a pointer of git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n",
    }
    name = rng.choice(list(others))
    path.write_bytes(others[name])
    return name


ANY = {
    "flip": of_bytes(flip),
    "flip several": of_bytes(flip_several),
    "cut": of_bytes(cut),
    "insert": of_bytes(insert),
    "double": of_bytes(double),
    "zeros": of_bytes(zeros),
    "random bytes": of_bytes(lambda content, rng: rng.randbytes(rng.choice([1, 10, len(content)]))),
    "empty": in_place_of(lambda path: path.write_bytes(b"")),
    "missing": in_place_of(lambda path: None),
    "a folder": in_place_of(lambda path: path.mkdir()),
    "a dangling link": in_place_of(lambda path: path.symlink_to("nowhere")),
    "a link to an empty file": in_place_of(link_to_an_empty_file),
    "another kind": another_kind,
}

# ----------------------------------------------------------------------------------------------------------------------
# JSON, TOML and what torch.save wrote: a value or a key that should not be there

VALUES = {
    name: name for name in "null true false -1 0 1 1.5 -0.5 1e400 NaN -Infinity [] [1] {}".split()
} | {
    "a text": '"x"',
    "an empty text": '""',
    "half a character": '"\\ud800"',
    "two lines": '"a\\nb"',
    "a long text": f'"{"long" * 25000}"',
    "long digits in a text": f'"{"1," * 30000}"',
    "a dict": '{"a": 1}',
    "2**63": str(2**63),
    "4000 digits": "9" * 4000,
    "5000 digits": "9" * 5000,
    "nested 700 times": "[" * 700 + "]" * 700,
    "nested 100000 times": "[" * 100_000 + "]" * 100_000,
}
KEYS = {"two lines": "a\nb", "a long one": "long" * 5000, "an odd one": " ", "a typing error": None}


def somewhere(value, rng):
    """(a list or dict, its key or index) of a random place in a value, not always a deep one; or None."""
    inside = (
        list(value)
        if isinstance(value, dict)
        else list(range(len(value)))
        if isinstance(value, list)
        else []
    )
    if not inside:
        return None
    key = rng.choice(inside)
    return (rng.random() < 0.75 and somewhere(value[key], rng)) or (value, key)


ANOTHER_TYPE = ", which is of another type"
MARK = "the place of a value that should not be there"


def json_value(text, rng):
    holder, name = {"": json.loads(text)}, rng.choice(list(VALUES))
    place, key = somewhere(holder, rng)
    was, place[key] = json.dumps(place[key]), MARK
    types = [
        next((first for first in '"[{tfn' if value.startswith(first)), "0")
        for value in (was, VALUES[name])
    ]
    known = (
        types[0] == types[1] or "n" in types or set(types) == {"t", "f"}
    )  # null may stand for anything
    what = f"{name} at {key!r}" + ("" if known else ANOTHER_TYPE)
    return json.dumps(holder[""]).replace(f'"{MARK}"', VALUES[name]), what


def json_key(text, rng):
    value, name, place = json.loads(text), rng.choice(["missing", *KEYS]), None
    while not isinstance(place, dict):
        place, key = somewhere(value, rng)
    kept = place.pop(key)
    if name != "missing":
        place[KEYS[name] or key[:-1]] = kept
    return json.dumps(value), f"{name} for the key {key!r}"


def json_element(text, rng):
    value = json.loads(text)
    for _ in range(100):
        place = somewhere(value, rng)
        if place and isinstance(place[0], list):
            (place, i), name = place, rng.choice(["missing", "twice"])
            place[i : i + 1] = [] if name == "missing" else 2 * [place[i]]
            return json.dumps(value), f"{name}: element {i} of {len(place)}"
    return text, None


def of_json(change):
    def mutate(path, rng):
        text, what = change(path.read_text("utf-8"), rng)
        path.write_text(text, "utf-8")
        return what

    return mutate


def of_a_line(change):
    def mutate(path, rng):
        lines = path.read_text("utf-8").splitlines()
        n = rng.randrange(len(lines))
        lines[n], what = change(lines[n], rng)
        path.write_text("\n".join(lines) + "\n", "utf-8")
        return f"line {n + 1}: {what}"

    return mutate


def toml_value(line, rng):
    name = rng.choice(
        [
            *VALUES,
            "nan",
            "inf",
            "1979-05-27",
            "0x7fffffffffffffff",
            "{a = 1}",
            "a key twice",
            "no key",
        ]
    )
    key, value = line.split(" = ")
    new = {"a key twice": f"{value}\n{line}", "1e400": "1e400"}.get(name, VALUES.get(name, name))
    return (value if name == "no key" else f"{key} = {new}"), f"{key} = {name}"


def toml_key(line, rng):
    name = rng.choice(list(KEYS))
    key, value = line.split(" = ")
    return f"{json.dumps(KEYS[name] or key[:-1])} = {value}", f"{name} for the key {key!r}"


def compress(path, rng):
    with zipfile.ZipFile(path) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in parts.items():
            new.writestr(name, content)
    return ""


def torch_value(path, rng):
    """What torch.save wrote, with another thing in it. All checksums are right."""
    value = {"": torch.load(path, weights_only=True)}
    place, key = somewhere(value, rng)
    was = place[key] if isinstance(place[key], torch.Tensor) else torch.zeros(2)
    values = {
        "nothing": None,
        "a text": "x",
        "a list": [1],
        "a dict": {"a": 1},
        "-1": -1,
        "2**63": 2**63,
        "NaN": float("nan"),
        "a tensor of NaN": torch.full_like(was, float("nan")),
        "a tensor of ints": torch.zeros(was.shape, dtype=torch.int64),
        "a tensor of complex numbers": torch.zeros(was.shape, dtype=torch.complex64),
        "a tensor of 0 dimensions": torch.tensor(1.0),
        "a tensor that is empty": torch.zeros(0),
        "a tensor that is huge, of one number": torch.zeros(1).expand(2**20, 2**20),
        "a tensor that is one number": torch.zeros(()).expand(was.shape),
        "a tensor that is larger": torch.zeros(2, *was.shape),
        "a tensor that is sparse": torch.zeros(was.shape).to_sparse(),
        "a tensor of float8": torch.zeros(was.shape).to(torch.float8_e4m3fn),
        "a tensor without numbers": torch.zeros(was.shape, device="meta"),
    }
    name = rng.choice(["missing", "a key that is a number", *values])
    if (
        name in ("missing", "a key that is a number")
        and isinstance(place, dict)
        and place is not value
    ):
        kept = place.pop(key)
        place.update({7: kept} if name != "missing" else {})
    else:
        place[key] = values.get(name)
    torch.save(value[""], path)
    return f"{name} at {key!r}"


MUTATIONS = {
    "bytes": ANY,
    "json": ANY
    | {"value": of_json(json_value), "key": of_json(json_key), "element": of_json(json_element)},
    "jsonl": ANY | {"value": of_a_line(json_value), "key": of_a_line(json_key)},
    "toml": ANY | {"value": of_a_line(toml_value), "key": of_a_line(toml_key)},
    "torch": ANY | {"compressed again": compress, "value": torch_value},
}

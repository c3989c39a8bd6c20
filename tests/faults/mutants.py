"""
Ways to damage a file: MUTATIONS[form][name](path, rng) changes the file at `path`, as a
random.Random decides. Forms are bytes, sealed (bytes with a checksum), json, jsonl, toml, flags,
and torch (what torch.save writes).
"""

import json
import os
from functools import partial

import torch

OTHER_FILES = [b"[1, 2]", b"\x89PNG\r\n\x1a\n" + bytes(90), "Es war einmal\n".encode("utf-16")]
OTHER_FILES += [b"\x80\x02}q\x00(X\x01\x00\x00\x00aq\x01K\x01u.", b"<!DOCTYPE html><html></html>\n"]
OTHER_FILES += [b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n"]


def of_bytes(change):
    """The mutation path -> change(its bytes, rng)."""

    def mutate(path, rng):
        path.write_bytes(change(path.read_bytes(), rng))

    return mutate


def of_text(change):
    """The mutation path -> change(its text, rng)."""
    return of_bytes(lambda content, rng: change(content.decode(), rng).encode())


def of_a_line(change):
    """The mutation path -> the same text with one line changed."""

    def change_line(text, rng):
        lines = text.splitlines()
        n = rng.randrange(len(lines))
        lines[n] = change(lines[n], rng)
        return "\n".join([*lines, ""])

    return of_text(change_line)


def flip(content, rng):
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 20])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def splice(content, rng):
    """Some bytes left out, doubled, zeroed, or with others before them."""
    start = rng.randrange(len(content))
    end = start + rng.choice([1, 4, 30, 1000])
    some = content[start:end]
    new = rng.choice([b"", some + some, bytes(len(some)), rng.randbytes(len(some)) + some])
    return content[:start] + new + content[end:]


ANY = {
    "flip": of_bytes(flip),
    "splice": of_bytes(splice),
    "cut": of_bytes(lambda content, rng: content[: rng.randrange(len(content))]),
    "noise": of_bytes(lambda content, rng: rng.randbytes(rng.choice([1, 10, len(content)]))),
    "another file": of_bytes(lambda content, rng: rng.choice(OTHER_FILES)),
    "empty": of_bytes(lambda content, rng: b""),
    "missing": lambda path, rng: path.unlink(),
    "a folder": lambda path, rng: [path.unlink(), path.mkdir()],
    "a pipe": lambda path, rng: [path.unlink(), os.mkfifo(path)],
    "a dangling link": lambda path, rng: [path.unlink(), path.symlink_to("nowhere")],
}

# JSON and TOML: values as they are written, by their type
VALUES = {
    float: ["-1", "0", "1", "1.5", "1e400", "NaN", "-Infinity", str(2**63), "9" * 4000, "9" * 5000],
    str: ['""', '"x"', '"\\ud800"', '"a\\nb"', f'"{"long" * 25000}"', f'"{"1," * 30000}"'],
    bool: ["true", "false"],
    type(None): ["null"],
    list: ["[]", "[1]", f"{'[' * 700}{']' * 700}", f"{'[' * 100_000}{']' * 100_000}"],
    dict: ["{}", '{"a": 1}'],
}
KEYS = ["a\nb", "long" * 5000, " ", None]
MARK = "the place of a value that should not be there"


def somewhere(value, rng):
    """(dict or list, its key or index) of a random place in a value; None if it holds nothing."""
    if not isinstance(value, dict | list) or not value:
        return None
    key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
    return (rng.random() < 0.75 and somewhere(value[key], rng)) or (value, key)


def another_value(text, rng, other_type=False):
    """JSON with one value replaced: by any, or by one of another type (null has every type)."""
    holder = {"": json.loads(text)}
    place, key = somewhere(holder, rng)
    old = float if type(place[key]) is int else type(place[key])
    kinds = [kind for kind in VALUES if not other_type or kind not in (old, type(None))]
    kinds = [old] if other_type and old is type(None) else kinds
    new = rng.choice(VALUES[rng.choice(kinds)])
    place[key] = MARK
    return json.dumps(holder[""]).replace(json.dumps(MARK), new)


def another_key(text, rng):
    """JSON with a key left out or named otherwise, or an element of a list left out or twice."""
    value = json.loads(text)
    place, key = somewhere(value, rng)
    old, new = place[key], rng.choice(KEYS)
    if isinstance(place, list):
        place[key : key + 1] = rng.choice([[], [old, old]])
    else:
        del place[key]
        place.update({} if new is None else {new: old})
    return json.dumps(value)


def another_setting(line, rng):
    """A line name=value with another value or name, or cut in two."""
    name, value = line.split("=", 1)
    new = rng.choice([*sum(VALUES.values(), []), "nan", "inf", "-inf", "2024-05-27", "", value])
    return rng.choice([f"{name}={new}"] * 3 + [f"{name[:-1]}={value}", name, value])


def torch_value(path, rng):
    """Another thing in a file of torch.save, whose checksums are right."""
    value = torch.load(path, weights_only=True)
    place, key = somewhere(value, rng)
    shape = place[key].shape if isinstance(place[key], torch.Tensor) else (2,)
    zeros = torch.zeros(shape)
    others = [None, "x", [1], {"a": 1}, -1, 2**63, float("nan"), torch.tensor(1.0), torch.zeros(0)]
    others += [zeros * float("nan"), zeros.to(torch.int64), zeros.to(torch.complex64)]
    others += [zeros.to_sparse(), zeros.to(torch.float8_e4m3fn), torch.zeros(shape, device="meta")]
    others += [torch.zeros(1).expand(2**20, 2**20), zeros[None], torch.zeros(()).expand(shape)]
    place[key] = rng.choice(others)
    torch.save(value, path)


JSON = {"value": another_value, "type": partial(another_value, other_type=True), "key": another_key}
MUTATIONS = {
    "bytes": ANY,
    "sealed": ANY,
    "json": ANY | {name: of_text(change) for name, change in JSON.items()},
    "jsonl": ANY | {name: of_a_line(change) for name, change in JSON.items()},
    "toml": ANY | {"setting": of_a_line(another_setting)},
    "flags": {"setting": of_a_line(another_setting)},
    "torch": ANY | {"value": torch_value},
}

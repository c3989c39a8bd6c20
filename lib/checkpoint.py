"""
Checkpoints: tensors and plain numbers, read with weights_only=True: never unpickled.

  checkpoint.pt          the newest
  checkpoint_before.pt   the one before, for when checkpoint.pt turns out to be damaged (with --keep=3,
                         checkpoint_before_2.pt as well, and so on)
  checkpoint_new.pt      whole and newer than all, if the process was killed before it moved up

A sharded run leaves checkpoint.dcp/ and so on instead: see lib/shards.py.
"""

import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import torch

from lib.files import read_json, reading, write_whole


def load_tensors(path):
    """What torch.save wrote, on the CPU; nothing in it is run. Raises ValueError."""
    check_zip(path)
    with reading(path):
        return torch.load(path, map_location="cpu", weights_only=True)


def check_zip(path):
    """Raise ValueError if a file is no zip file as torch.save writes it, or if a checksum in it is wrong."""
    with reading(path), open(path, "rb") as file:
        if file.read(6) == b"\x80\x02\x8a\x0a\x6c\xfc":
            raise ValueError("a torch before 1.6 saved it, in another form: load it and save it again")
        with zipfile.ZipFile(file) as parts:
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise ValueError("it was compressed afterwards: unzip it, and zip it without compression")
            if damaged := parts.testzip():
                raise ValueError(f"wrong checksum of {damaged}")


def checked_weight(tensor, name, path):
    """The same tensor. Raises ValueError if it does not hold real numbers that are finite."""
    with reading(path, f"cannot be used: {name}"):
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise ValueError(f"is of {tensor.dtype}, which is no weight")
        if not torch.isfinite(tensor).all():
            raise ValueError("holds a number that is not finite")
    return tensor


def save_checkpoint(folder, state, keep=2):
    """Write checkpoint.pt, never half of it, and keep those before: `keep` in all. Raises OSError."""
    finish_move(folder, ".pt", check_zip, keep)
    written = Path(folder) / "checkpoint_new.pt"
    write_whole(written, lambda file: torch.save(state, file))
    return move_up(written, keep)


def finish_move(folder, ending, check, keep):
    """Move checkpoint_new up, if the process was killed before it could; or away, if check(path) raises ValueError."""
    written = Path(folder) / f"checkpoint_new{ending}"
    if written.exists():
        try:
            check(written)
        except ValueError:
            return remove(written)
        move_up(written, keep)


def move_up(written, keep):
    """checkpoint_new becomes checkpoint, which becomes checkpoint_before, and so on. Killed at any moment, all that was
    there is there, but for the oldest of `keep`."""
    folder, ending = written.parent, written.suffix
    names = ["", "_before", *(f"_before_{i}" for i in range(2, keep))]
    places = [folder / f"checkpoint{name}{ending}" for name in names]
    for path in checkpoints(folder, ending):
        if path not in places and path != written:  # more were kept before
            remove(path)
    free = next((i for i, place in enumerate(places) if not place.exists()), None)
    if free is None:
        free = keep - 1
        remove(places[free])
    for i in range(free, 0, -1):
        os.rename(places[i - 1], places[i])
    os.rename(written, places[0])
    return places[0]


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def checkpoints(folder, ending):
    """The checkpoints of a folder, the newest first. Files of other names are the user's."""
    ours = re.compile(r"checkpoint(_new|_before(_\d+)?)?")
    found = [path for path in Path(folder).glob(f"checkpoint*{ending}") if ours.fullmatch(path.stem)]
    found = [path for path in found if not half_written(path)]
    found.sort(key=lambda path: (len(path.name), path.name))
    return sorted(found, key=lambda path: path.stem != "checkpoint_new")


def half_written(path):
    """Was the process killed before it had written this? A file appears when it is whole. A sharded checkpoint is a
    folder, and each process's checksums are what it writes last: see lib/shards.py."""
    if path.name != "checkpoint_new.dcp":
        return False
    try:
        processes = read_json(path / "sums_0.json", {"of": int})["of"]
    except ValueError:
        return True
    return len(list(path.glob("sums_*.json"))) < processes


def newest_whole(folder, ending, read):
    """read(path) of the newest checkpoint that is whole; says so if that is not the newest. read raises ValueError for
    one that is not. Raises ValueError, in one line, if none is whole."""
    found, reasons = checkpoints(folder, ending), []
    if not found:
        raise ValueError(f"there is no checkpoint in {folder}: train one with train.py --out={folder}")
    for path in found:
        try:
            state = read(path)
        except ValueError as error:
            reasons.append(str(error))
            continue
        if reasons:
            step = f", step {state['step']}" if isinstance(state, dict) else ""
            print(f"{'; '.join(reasons)}: going back to {path.name}{step}", file=sys.stderr)
        return state
    raise ValueError("; ".join(reasons) + ": restore it, or delete it to start anew")


def read_checkpoint(folder):
    """The newest whole state of those that save_checkpoint wrote. Raises ValueError, in one line."""
    return newest_whole(folder, ".pt", load_tensors)

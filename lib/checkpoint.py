"""
Checkpoints: tensors and plain numbers, read with weights_only=True: never unpickled.

  checkpoint.pt          the newest
  checkpoint_before.pt   the one before, for when checkpoint.pt turns out to be damaged (with --keep=3,
                         checkpoint_before_2.pt as well, and so on)

A sharded run leaves checkpoint.dcp/ and so on instead: see lib/shards.py.
"""

import os
import re
import shutil
import sys
import zipfile
from pathlib import Path

import torch

from lib.files import write_whole


def save_checkpoint(folder, state, keep=2):
    """Write checkpoint.pt, never half of it, and keep those before: `keep` in all."""
    written = Path(folder) / "checkpoint_new.pt"
    if written.exists():  # whole, and killed before it was moved
        move_up(written, keep)
    write_whole(written, lambda file: torch.save(state, file))
    return move_up(written, keep)


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
    """The checkpoints of a folder, the newest first. One that is still called new may be whole, if all ended between
    two renames. Files of other names are the user's."""
    ours = re.compile(r"checkpoint(_new|_before(_\d+)?)?")
    found = [path for path in Path(folder).glob(f"checkpoint*{ending}") if ours.fullmatch(path.stem)]
    found.sort(key=lambda path: (len(path.name), path.name))
    return sorted(found, key=lambda path: path.stem != "checkpoint_new")


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
            if path.stem != "checkpoint_new" or ending == ".pt":  # a sharded one of that name may be half-written
                reasons.append(f"{path} is damaged or cut short ({error})")
            continue
        if reasons:
            step = f", step {state['step']}" if isinstance(state, dict) else ""
            print(f"{'; '.join(reasons)}: going back to {path.name}{step}", file=sys.stderr)
        return state
    raise ValueError("; ".join(reasons) + ": restore it, or delete it to start anew")


def read_checkpoint(folder, device="cpu"):
    """The newest whole state of those that save_checkpoint wrote. Raises ValueError, in one line."""

    def read(path):
        try:
            damaged = zipfile.ZipFile(path).testzip()  # the checksum of every part
            if damaged:
                raise ValueError(f"wrong checksum of {damaged}")
            return torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # whatever is raised on bytes that are not a checkpoint: it is one thing to the user
            raise ValueError(str(error).split("\n")[0]) from None

    return newest_whole(folder, ".pt", read)

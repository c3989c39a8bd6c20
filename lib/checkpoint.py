"""
Checkpoints: tensors and plain numbers, read with weights_only=True: never unpickled.

  checkpoint.pt          the newest
  checkpoint_before.pt   the one before, for when checkpoint.pt turns out to be damaged (with --keep=3,
                         checkpoint_before_2.pt as well, and so on)
  checkpoint_new.pt      whole and newer than all, if the process was killed before it moved up
"""

import os
import re
import sys
import zipfile
from pathlib import Path

import torch

from lib.files import check, reading, write_whole


def load_tensors(path, mmap=False):
    """What torch.save wrote, on the CPU; nothing in it is run. mmap: in memory as far as it is read. ValueError."""
    check_zip(path)
    with reading(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def check_zip(path):
    """Raise ValueError if a file is no zip file as torch.save writes it, or if a checksum in it is wrong."""
    with reading(path), open(path, "rb") as file:
        if file.read(6) == b"\x80\x02\x8a\x0a\x6c\xfc":
            raise ValueError(
                "a torch before 1.6 saved it, in another form: load it and save it again"
            )
        with zipfile.ZipFile(file) as parts:
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise ValueError(
                    "it was compressed afterwards: unzip it, and zip it without compression"
                )
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
    finish_move(folder, keep)
    written = Path(folder) / "checkpoint_new.pt"
    write_whole(written, lambda file: torch.save(state, file))
    move_up(written, keep)


def finish_move(folder, keep):
    """If the process was killed before checkpoint_new moved up: move it up, or away if it is damaged."""
    written = Path(folder) / "checkpoint_new.pt"
    if written.exists():
        try:
            check_zip(written)
        except ValueError:
            return written.unlink()
        move_up(written, keep)


def move_up(written, keep):
    """checkpoint_new becomes checkpoint, which becomes checkpoint_before, and so on. Killed at any moment, all that was
    there is there, but for the oldest of `keep`."""
    folder, more = written.parent, (f"_before_{i}" for i in range(2, min(keep, 999)))
    places = [folder / f"checkpoint{name}.pt" for name in ("", "_before", *more)]
    for path in checkpoints(folder):
        if path not in places and path != written:  # more were kept before
            path.unlink()
    free = next((i for i, place in enumerate(places) if not place.exists()), len(places) - 1)
    for i in range(free, 0, -1):
        os.replace(places[i - 1], places[i])
    os.replace(written, places[0])


def checkpoints(folder):
    """The checkpoints of a folder, the newest first. Files of other names are the user's."""
    ours = re.compile(r"checkpoint(_new|_before(_\d+)?)?\.pt")
    found = [path for path in Path(folder).glob("checkpoint*.pt") if ours.fullmatch(path.name)]
    found.sort(key=lambda path: (len(path.name), path.name))
    return sorted(found, key=lambda path: path.stem != "checkpoint_new")


def read_checkpoint(folder, mmap=False):
    """The newest whole state of those that save_checkpoint wrote; says so if that is not the newest. Raises ValueError,
    in one line, if there is none."""
    found, reasons = checkpoints(folder), []
    if not found:
        old = " (a checkpoint.dcp is of an earlier version)" * any(
            Path(folder).glob("checkpoint*.dcp")
        )
        raise ValueError(
            f"there is no checkpoint in {folder}{old}: train one with train.py --out={folder}"
        )
    for path in found:
        try:
            state = load_tensors(path, mmap)
            with reading(path, "is no checkpoint of train.py"):
                check(state, {"step": int, "seconds": float, "model": {str: torch.Tensor}})
        except ValueError as error:
            reasons.append(str(error))
            continue
        if reasons:
            print(
                f"{'; '.join(reasons)}: going back to {path.name}, step {state['step']}",
                file=sys.stderr,
            )
        return state
    raise ValueError("; ".join(reasons) + ": restore it, or delete it to start anew")

"""
Checkpoints: checkpoint_<8 digits>.pt, tensors and plain numbers, never unpickled as code.

A checkpoint is a new file. The one before it is deleted only after the next one is complete, and is
read in its place if that one turns out to be damaged.
"""

import pickle
import sys
import zipfile
from pathlib import Path

import torch

from lib.files import check, one_line, reading, write_whole

SHAPE = {"step": int, "metrics": {"seconds": float}, "model": {str: torch.Tensor}}
WEIGHTS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # their types


def load_tensors(path):
    """What torch.save wrote, on the CPU; a tensor is read when it is used. Raises ValueError."""
    with reading(path, "cannot be read"):
        with zipfile.ZipFile(path) as parts:
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise ValueError("it was compressed: unzip it, and zip it without compression")
            if damaged := parts.testzip():  # torch.load does not notice a changed byte
                raise ValueError(f"wrong checksum of {damaged}")
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError:
            raise ValueError("it holds more than tensors and numbers") from None


def checked_weight(tensor, name, path):
    """The same tensor. Raises ValueError if it does not hold floats that are finite."""
    with reading(path, f"cannot be used: {name}"):
        if tensor.dtype not in WEIGHTS:
            raise ValueError(f"is of {tensor.dtype}, which is no weight")
        if not torch.stack(torch.aminmax(tensor)).isfinite().all():  # 10 times as fast as isfinite
            raise ValueError("holds a number that is not finite")
    return tensor


def check_state(state, path):
    """checked_weight of each tensor in nested dicts."""
    for name, x in state.items():
        if isinstance(x, dict):
            check_state(x, path)
        elif isinstance(x, torch.Tensor):
            checked_weight(x, name, path)


def save_checkpoint(folder, state):
    """Write state, a dict as in SHAPE. It and the one before are kept. Raises OSError, and
    ValueError if a tensor is not finite."""
    path = Path(folder) / f"checkpoint_{state['step']:08}.pt"
    check_state(state, f"step {state['step']}")
    write_whole(path, lambda file: torch.save(state, file))
    for old in checkpoints(folder)[2:]:
        old.unlink()


def checkpoints(folder):
    """The paths of the checkpoints in a folder, the newest first."""
    return sorted(Path(folder).glob(f"checkpoint_{'[0-9]' * 8}.pt"), reverse=True)


def read_checkpoint(folder):
    """The newest state that is not damaged: SHAPE, "optimizer", and the "path" of its file. Says so
    if it is not the newest. Raises ValueError if there is none."""
    problems = []
    for path in checkpoints(folder):
        try:
            state = load_tensors(path)
            with reading(path, "is no checkpoint of train.py"):
                check(state, SHAPE)
            check_state(state, path)
        except ValueError as error:
            problems.append(str(error))
            continue
        if problems:
            problems = one_line("; ".join(problems))
            print(f"{problems}: going back to {path.name}", file=sys.stderr)
        return {**state, "path": path}
    if problems:
        raise ValueError(f"{'; '.join(problems)}: restore one, or delete them to start anew")
    raise ValueError(f"there is no checkpoint in {folder}: train one with train.py --out={folder}")

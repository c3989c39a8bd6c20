"""
Checkpoints of sharded runs (--parallel=fsdp), by torch.distributed.checkpoint: every process writes and reads its own
slices, and as many processes may read as want to.

  checkpoint.dcp/, checkpoint_before.dcp/   a file of each process, and its checksums
"""

import warnings
import zlib
from pathlib import Path

import torch

from lib.checkpoint import checkpoints, finish_move, move_up, newest_whole
from lib.files import read_json, reading, reason, write_json
from lib.parallel import barrier


def save_sharded(folder, model, optimizer, step, seconds, processes, keep=2):
    """Write checkpoint.dcp, all processes together, and keep those before: `keep` in all. Raises OSError in every
    process if one of them cannot write. Processes on several machines need a folder that all of them see."""
    from torch.distributed.checkpoint import FileSystemWriter, save
    from torch.distributed.checkpoint.api import CheckpointException

    written = Path(folder) / "checkpoint_new.dcp"
    if processes.first:
        finish_move(folder, ".dcp", check_shards, keep)
    barrier(processes)
    state = flat_state(model, optimizer) | {"step": torch.tensor(step), "seconds": torch.tensor(seconds).double()}
    try:
        save(state, storage_writer=FileSystemWriter(written))  # it waits for the disk to have them
    except CheckpointException as error:
        raise OSError(reason(next(iter(error.failures.values()))[0])) from None
    sums = {file.name: checksum(file) for file in sorted(written.glob(f"__{processes.rank}_*"))}
    if processes.first:
        sums[".metadata"] = checksum(written / ".metadata")
    write_json(written / f"sums_{processes.rank}.json", {"of": processes.world, "sums": sums})
    barrier(processes)
    if processes.first:
        move_up(written, keep)
    barrier(processes)


def load_sharded(folder, model, optimizer, processes):
    """Load the newest whole checkpoint into model and optimizer, in place: (step, seconds). Raises ValueError."""
    path = whole_shards(folder)
    state = flat_state(model, optimizer) | {"step": torch.tensor(0), "seconds": torch.tensor(0.0).double()}
    read_shards(path, state, no_dist=processes.world == 1)
    return int(state["step"]), float(state["seconds"])


def flat_state(model, optimizer):
    """{name: tensor} of all weights, and of what AdamW keeps of each: slices, where they are sharded."""
    state = {f"model.{name}": x for name, x in model.state_dict().items()}
    for name, p in model.named_parameters():
        kept = optimizer.state[p]
        if not kept:  # before the first step: what it will be filled with
            kept["step"] = torch.zeros((), device=p.device)
            kept |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        state |= {f"optimizer.{name}.{key}": x for key, x in kept.items()}
    return state


def gather_shards(folder):
    """The newest checkpoint in one piece and without the optimizer's part. Raises ValueError."""
    path = whole_shards(folder)
    with reading(path):
        kinds = shards_reader(path).read_metadata().state_dict_metadata.items()
        kinds = [(name, kind) for name, kind in kinds if not name.startswith("optimizer.")]
        state = {name: torch.empty(kind.size, dtype=kind.properties.dtype) for name, kind in kinds}
    read_shards(path, state, no_dist=True)
    weights = {name.removeprefix("model."): x for name, x in state.items() if name.startswith("model.")}
    return {"step": int(state["step"]), "seconds": float(state["seconds"]), "model": weights}


def read_shards(path, state, no_dist):
    from torch.distributed.checkpoint import load

    with reading(path, "does not fit this model"), warnings.catch_warnings(action="ignore"):  # that it reads alone
        load(state, storage_reader=shards_reader(path), no_dist=no_dist)


def shards_reader(path):
    """torch's reader, but for its index: a pickle, of which nothing is let in but what describes tensors."""
    import pickle

    from torch.distributed.checkpoint import FileSystemReader

    class Index(pickle.Unpickler):
        def find_class(self, module, name):
            if name in INDEX_NAMES.get(module, "").split():
                return super().find_class(module, name)
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")

    class Reader(FileSystemReader):
        def read_metadata(self, *args, **kwargs):
            with open(Path(path) / ".metadata", "rb") as file:
                metadata = Index(file).load()
            for place in metadata.storage_data.values():
                if Path(place.relative_path).name != place.relative_path:
                    raise ValueError(f"its index points to {place.relative_path}, outside of it")
            return metadata

    return Reader(path)


INDEX_NAMES = {
    "torch": "Size float32 float64 int64",
    "torch.serialization": "_get_layout",
    "torch.distributed.checkpoint.filesystem": "_StorageInfo",
    "torch.distributed.checkpoint.metadata": "ChunkStorageMetadata Metadata MetadataIndex StorageMeta TensorProperties "
    "TensorStorageMetadata _MEM_FORMAT_ENCODING",
    "pathlib": "PosixPath WindowsPath",
}


def is_sharded(folder):
    return bool(checkpoints(folder, ".dcp"))


def whole_shards(folder):
    """The newest sharded checkpoint whose checksums are right. Raises ValueError."""

    def read(path):
        check_shards(path)
        return path

    return newest_whole(folder, ".dcp", read)


def check_shards(path):
    """Raise ValueError unless all that the processes wrote is there and has its checksum."""
    shape = {"of": int, "sums": {str: int}}
    with reading(path):
        for rank in range(read_json(path / "sums_0.json", shape)["of"]):
            for name, wanted in read_json(path / f"sums_{rank}.json", shape)["sums"].items():
                if Path(name).name != name or checksum(path / name) != wanted:
                    raise ValueError(f"wrong checksum of {name}")


def checksum(path):
    total = 0
    with open(path, "rb") as file:
        while block := file.read(2**24):
            total = zlib.crc32(block, total)
    return total

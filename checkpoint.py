"""
Run folders: what training leaves behind, and how everything else reads it.

  config.json     the settings of the run, the shape of its model, its tokenizer
  log.jsonl       one line a step
  checkpoint.pt   tensors and plain numbers, read with weights_only=True: never unpickled
  checkpoint_before.pt   the one before, for when checkpoint.pt turns out to be damaged (with --keep=3,
                  checkpoint_before_2.pt as well, and so on)
  checkpoint.dcp/, checkpoint_before.dcp/   of a sharded run (--parallel=fsdp), instead: a file of each process
  tokenizer file  if the tokenizer has one (tokenizer.model, tekken.json, tokenizer.json)

Wherever a run folder is asked for, a folder of official or Hugging Face weights with its tokenizer file serves as well.

    python checkpoint.py --run=out/mine --out=weights/mine     a run's model in Mistral's official layout
"""

import json
import os
import re
import shutil
import sys
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch

from config import from_cli
from data.dataset import replace_file, write_whole
from data.tokenizer import from_json, load_tokenizer
from model import ModelConfig, Transformer, load_mistral, save_mistral
from parallel import barrier
from quiet_star import QuietSTaR, QuietSTaRConfig


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


def load_checkpoint(folder, device="cpu"):
    """The newest state that is whole, of those that save_checkpoint wrote; says so if that is not the newest. Raises
    ValueError, in one line, if none can be had. Of a sharded checkpoint: all of it but the optimizer's part."""
    if is_sharded(folder):
        return gather_shards(folder)
    found, reasons = checkpoints(folder, ".pt"), []
    if not found:
        raise ValueError(f"there is no checkpoint in {folder}: train one with train.py --out={folder}")
    for path in found:
        try:
            damaged = zipfile.ZipFile(path).testzip()  # the checksum of every part
            if damaged:
                raise ValueError(f"wrong checksum of {damaged}")
            state = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # whatever is raised on bytes that are not a checkpoint: it is one thing to the user
            reasons.append(f"{path} is damaged or cut short ({str(error).split(chr(10))[0]})")
            continue
        if reasons:
            print(f"{'; '.join(reasons)}: going back to {path.name}, step {state['step']}", file=sys.stderr)
        return state
    raise ValueError("; ".join(reasons) + ": restore it, or delete it to start anew")


def has_checkpoint(folder):
    return bool(checkpoints(folder, ".pt")) or is_sharded(folder)


# ----------------------------------------------------------------------------------------------------------------------
# checkpoints of sharded runs, by torch.distributed.checkpoint: every process writes and reads its own slices, and as
# many processes may read as want to


def save_sharded(folder, model, optimizer, step, seconds, processes, keep=2):
    """Write checkpoint.dcp, all processes together, and keep those before: `keep` in all. Raises OSError in every
    process if one of them cannot write. Processes on several machines need a folder that all of them see."""
    from torch.distributed.checkpoint import FileSystemWriter, save
    from torch.distributed.checkpoint.api import CheckpointException

    written = Path(folder) / "checkpoint_new.dcp"
    if processes.first and written.exists():
        if what_is_wrong(written) is None:  # killed before it was moved
            move_up(written, keep)
        else:
            remove(written)
    barrier(processes)
    state = flat_state(model, optimizer) | {"step": torch.tensor(step), "seconds": torch.tensor(seconds).double()}
    try:
        save(state, storage_writer=FileSystemWriter(written))  # it waits for the disk to have them
    except CheckpointException as error:
        raise OSError(next(iter(error.failures.values()))[0]) from None
    sums = {file.name: checksum(file) for file in sorted(written.glob(f"__{processes.rank}_*"))}
    if processes.first:
        sums[".metadata"] = checksum(written / ".metadata")
    replace_file(written / f"sums_{processes.rank}.json", json.dumps({"of": processes.world, "sums": sums}).encode())
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
    """load_checkpoint, of a sharded one, in one piece and without the optimizer's part. Raises ValueError."""
    path = whole_shards(folder)
    kinds = shards_reader(path).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(kind.size, dtype=kind.properties.dtype)
        for name, kind in kinds.items()
        if not name.startswith("optimizer.")
    }
    read_shards(path, state, no_dist=True)
    weights = {name.removeprefix("model."): x for name, x in state.items() if name.startswith("model.")}
    return {"step": int(state["step"]), "seconds": float(state["seconds"]), "model": weights}


def read_shards(path, state, no_dist):
    from torch.distributed.checkpoint import load
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings(action="ignore"):  # that it reads alone, where it was told to
            load(state, storage_reader=shards_reader(path), no_dist=no_dist)
    except (CheckpointException, RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit this model ({reason[:200]})") from None


def shards_reader(path):
    """torch's reader, but for its index: a pickle, of which nothing is let in but what describes tensors."""
    import pickle

    from torch.distributed.checkpoint import FileSystemReader

    class Index(pickle.Unpickler):
        def find_class(self, module, name):
            if name in INDEX_NAMES.get(module, ()):
                return super().find_class(module, name)
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")

    class Reader(FileSystemReader):
        def read_metadata(self, *args, **kwargs):
            with open(Path(path) / ".metadata", "rb") as file:
                return Index(file).load()

    return Reader(path)


INDEX_NAMES = {
    "torch": ("Size", "float32", "float64", "int64"),
    "torch.serialization": ("_get_layout",),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
    "torch.distributed.checkpoint.metadata": (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "pathlib": ("PosixPath", "WindowsPath"),
}


def is_sharded(folder):
    return bool(checkpoints(folder, ".dcp"))


def whole_shards(folder):
    """The newest sharded checkpoint whose checksums are right; says so if that is not the newest. Raises ValueError."""
    reasons = []
    for path in checkpoints(folder, ".dcp"):
        reason = what_is_wrong(path)
        if reason is None:
            if reasons:
                print(f"{'; '.join(reasons)}: going back to {path.name}", file=sys.stderr)
            return path
        if path.stem != "checkpoint_new":  # that one may be half-written
            reasons.append(f"{path} is damaged or cut short ({reason})")
    raise ValueError("; ".join(reasons) + ": restore it, or delete it to start anew")


def what_is_wrong(path):
    """None if all that the processes wrote is there and has its checksum, else the reason."""
    try:
        first = json.loads((path / "sums_0.json").read_text())
        for rank in range(first["of"]):
            for name, wanted in json.loads((path / f"sums_{rank}.json").read_text())["sums"].items():
                if checksum(path / name) != wanted:
                    return f"wrong checksum of {name}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)


def checksum(path):
    total = 0
    with open(path, "rb") as file:
        while block := file.read(2**24):
            total = zlib.crc32(block, total)
    return total


# ----------------------------------------------------------------------------------------------------------------------
# run folders


def lock(folder):
    """Claim a run folder for this process, as long as it keeps the file open that is returned. Raises ValueError if
    another process has it. (Windows knows no such lock: there, nothing is claimed.)"""
    if os.name == "nt":
        return open(os.devnull)
    import fcntl

    file = open(Path(folder) / "lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ValueError(f"another process is training in {folder} right now: choose another --out") from None
    return file


def write_config(folder, config):
    replace_file(Path(folder) / "config.json", json.dumps(config, indent=1, ensure_ascii=False).encode())


def read_config(folder):
    """The settings of a run, a dict of dicts. Raises ValueError."""
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text("utf-8"))
        return {key: config[key] for key in ("train", "model", "quiet_star", "tokenizer")}
    except FileNotFoundError:
        raise ValueError(f"{folder} is no run of train.py (it has no config.json)") from None
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the configuration of a run ({error!r})") from None


def load_weights(module, weights, path):
    """module.load_state_dict, strictly; the first tensor that does not fit is named with both shapes (ValueError)."""
    wanted = module.state_dict()
    for name in sorted(wanted.keys() | weights.keys()):
        shapes = [tuple(x[name].shape) if name in x else "nothing" for x in (weights, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{path} does not fit this model: it holds {shapes[0]} for {name}, {shapes[1]} is wanted")
    module.load_state_dict(weights)


def load_run(folder, device="cpu"):
    """The model of a run: (model, tokenizer, config, step). A Transformer if objective=lm, else a QuietSTaR."""
    config, state = read_config(folder), load_checkpoint(folder, device)
    tokenizer = from_json(config["tokenizer"], folder)
    model = Transformer(ModelConfig(**config["model"]))
    if config["train"]["objective"] == "quiet_star":
        model = QuietSTaR(model, QuietSTaRConfig(**config["quiet_star"]))
    load_weights(model, state["model"], Path(folder) / "checkpoint.pt")
    return model.to(device).eval(), tokenizer, config, state["step"]


def load_model(folder, device="cpu"):
    """The model of a run, or of a folder of weights (see model.load_mistral): (model, tokenizer, config, step), as
    load_run; weights from elsewhere have neither config nor steps, (model, tokenizer, None, 0), and become float32.
    Beside weights that `export` wrote is what makes them think: a QuietSTaR, then."""
    folder = Path(folder)
    if not any(any(folder.glob(name)) for name in ("params.json", "*.safetensors", "pytorch_model*.bin")):
        return load_run(folder, device)
    tokenizer = load_tokenizer(folder)
    model = load_mistral(folder, torch.float32)
    if model.config.vocab_size < tokenizer.vocab_size:
        sizes = f"{tokenizer.vocab_size} tokens, the model {model.config.vocab_size}"
        raise ValueError(f"the tokenizer in {folder} has {sizes}")
    path = folder / "quiet_star.pt"
    if path.exists():
        try:
            settings = json.loads((folder / "quiet_star.json").read_text("utf-8"))
            weights = torch.load(path, weights_only=True)
            model = QuietSTaR(model, QuietSTaRConfig(**settings))
        except Exception as error:  # whatever is raised on bytes that are neither: it is one thing to the user
            reason = str(error).split("\n")[0]
            raise ValueError(f"{path} or quiet_star.json beside it is damaged ({reason})") from None
        load_weights(model, {**{f"model.{n}": x for n, x in model.model.state_dict().items()}, **weights}, path)
    return model.to(device).eval(), tokenizer, None, 0


def must_think(model, folder):
    """Raise ValueError, in one line, if the model of a folder is a plain one."""
    if not isinstance(model, QuietSTaR):
        raise ValueError(f"{folder} is a plain language model: name a thinking one with --run")


def export(run, out):
    """Write a run's model as Mistral's official layout with its tokenizer, and what thinks, if it does, beside it:
    quiet_star.pt, the tensors of start, end, mixing head and gain head, and quiet_star.json, their settings."""
    model, tokenizer, _, _ = load_run(run)
    transformer = model.model if isinstance(model, QuietSTaR) else model
    save_mistral(transformer, out)
    tokenizer.save(out)
    if isinstance(model, QuietSTaR):
        weights = {name: x for name, x in model.state_dict().items() if not name.startswith("model.")}
        write_whole(Path(out) / "quiet_star.pt", lambda file: torch.save(weights, file))
        replace_file(Path(out) / "quiet_star.json", json.dumps(vars(model.config), indent=1).encode())


def read_log(folder):
    """The lines of log.jsonl, a list of dicts; a last line that was cut short is left out."""
    path, lines = Path(folder) / "log.jsonl", []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


@dataclass
class ExportConfig:
    run: str = ""  # folder of the run whose model is to be exported
    out: str = ""  # folder to write

    def __post_init__(self):
        if not self.run or not self.out:
            raise ValueError("--run and --out are both needed")


def main():
    config, _ = from_cli(__doc__, ExportConfig)
    try:
        export(config.run, config.out)
    except (ValueError, OSError) as error:
        sys.exit(f"checkpoint.py: error: {error}")
    print(f"{config.out}: " + ", ".join(sorted(path.name for path in Path(config.out).iterdir())))


if __name__ == "__main__":
    main()

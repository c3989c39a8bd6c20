"""
Run folders: what training leaves behind, and how everything else reads it.

  config.json     the settings of the run, the shape of its model, its tokenizer
  log.jsonl       one line a step
  checkpoint.*    see lib/checkpoint.py
  tokenizer file  if the tokenizer has one (tokenizer.model, tekken.json, tokenizer.json)

Wherever a run folder is asked for, a folder of official or Hugging Face weights with its tokenizer file serves as well.
"""

import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path

import torch

from beyond.adaptive import attach_gain_head
from lib.checkpoint import checkpoints, read_checkpoint, save_checkpoint
from lib.files import replace_file
from lib.parallel import barrier
from lib.shards import gather_shards, is_sharded, load_sharded, save_sharded
from lib.tokenizer import from_json, load_tokenizer
from lib.weights import load_mistral
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR, QuietSTaRConfig


def load_checkpoint(folder, device="cpu"):
    """The newest whole state of a run; of a sharded one, without the optimizer's part. Raises ValueError."""
    return gather_shards(folder) if is_sharded(folder) else read_checkpoint(folder, device)


def has_checkpoint(folder):
    return bool(checkpoints(folder, ".pt")) or is_sharded(folder)


def what_is_kept(folder):
    """For an error message: is there a checkpoint to go on from?"""
    path = Path(folder) / "checkpoint.pt"
    return f"the last good checkpoint is kept ({path})" if has_checkpoint(folder) else "there is no checkpoint yet"


def steps_done(folder):
    return load_checkpoint(folder)["step"] if has_checkpoint(folder) else 0


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


def read_log(folder):
    """The lines of log.jsonl, a list of dicts; a last line that was cut short is left out."""
    path, lines = Path(folder) / "log.jsonl", []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def load_weights(module, weights, path):
    """module.load_state_dict, strictly; the first tensor that does not fit is named with both shapes (ValueError)."""
    wanted = module.state_dict()
    for name in sorted(wanted.keys() | weights.keys()):
        shapes = [tuple(x[name].shape) if name in x else "nothing" for x in (weights, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"{path} does not fit this model: it holds {shapes[0]} for {name}, {shapes[1]} is wanted")
    module.load_state_dict(weights)


def thinking(model, settings, weights):
    """A QuietSTaR of a Transformer, with what is not of the paper attached where `weights` hold it (see beyond/)."""
    quiet = QuietSTaR(model, QuietSTaRConfig(**settings))
    if any(name.startswith("gain_head.") for name in weights):
        attach_gain_head(quiet)
    return quiet


def load_run(folder, device="cpu"):
    """The model of a run: (model, tokenizer, config, step). A Transformer if objective=lm, else a QuietSTaR."""
    config, state = read_config(folder), load_checkpoint(folder, device)
    tokenizer = from_json(config["tokenizer"], folder)
    model = Transformer(ModelConfig(**config["model"]))
    if config["train"]["objective"] == "quiet_star":
        model = thinking(model, config["quiet_star"], state["model"])
    load_weights(model, state["model"], Path(folder) / "checkpoint.pt")
    return model.to(device).eval(), tokenizer, config, state["step"]


def load_model(folder, device="cpu"):
    """The model of a run, or of a folder of weights (see lib/weights.py): (model, tokenizer, config, step), as
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
            model = thinking(model, settings, weights)
        except Exception as error:  # whatever is raised on bytes that are neither: it is one thing to the user
            reason = str(error).split("\n")[0]
            raise ValueError(f"{path} or quiet_star.json beside it is damaged ({reason})") from None
        load_weights(model, {**{f"model.{n}": x for n, x in model.model.state_dict().items()}, **weights}, path)
    return model.to(device).eval(), tokenizer, None, 0


def must_think(model, folder):
    """Raise ValueError, in one line, if the model of a folder is a plain one."""
    if not isinstance(model, QuietSTaR):
        raise ValueError(f"{folder} is a plain language model: name a thinking one with --run")


def last_run():
    """The folder in out/ whose thinking model was saved last. Raises ValueError."""
    found = sorted(Path("out").glob("**/checkpoint.*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        if read_config(path.parent)["train"]["objective"] == "quiet_star":
            return path.parent
    raise ValueError("no thinking model in out/ yet: train one (python train.py), or name one with --run")


# what may change when a run goes on; everything else would make it another run
MAY_CHANGE = set(
    "max_steps micro_batch think_at_once recompute eval_every eval_texts save_every keep parallel gather device out "
    "base_preset".split()
)


def open_run(out, settings, defaults, model, optimizer, tokenizer, processes):
    """Go on with the run in `out`, or begin it: (steps done, seconds they took). Raises ValueError, OSError.
    defaults: {name: value} of settings, for those that are newer than the run."""
    out = Path(out)
    if (out / "config.json").exists():
        old = read_config(out)
        for part in ("train", "model", "quiet_star", "tokenizer"):
            if part == "quiet_star" and settings["train"]["objective"] == "lm":
                continue
            for name, value in settings[part].items():
                was = old[part].get(name, defaults.get(name))
                if name not in MAY_CHANGE and was != value:
                    what = f"{name} is {was!r} there, {value!r} here"
                    raise ValueError(f"{out} holds another run ({what}): choose another --out")
    step, seconds, sharded = 0, 0.0, settings["train"]["parallel"] == "fsdp"
    if has_checkpoint(out) and sharded != is_sharded(out):
        raise ValueError(
            f"{out} was trained {'with' if not sharded else 'without'} --parallel=fsdp, and goes on only so; or begin "
            f"a run with its weights: --init_from={out}"
        )
    if is_sharded(out):
        step, seconds = load_sharded(out, model, optimizer, processes)
    elif has_checkpoint(out):
        state = load_checkpoint(out)
        load_weights(model, state["model"], out / "checkpoint.pt")
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    if processes.first:
        tokenizer.save(out)
        write_config(out, settings)
        kept = [line for line in read_log(out) if line["step"] <= step]  # steps after the checkpoint are done anew
        replace_file(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())
    barrier(processes)
    return step, seconds


def save_run(out, model, optimizer, step, seconds, processes, keep):
    """Write a checkpoint of the run in `out`. Raises OSError."""
    if processes.parallel == "fsdp":
        save_sharded(out, model, optimizer, step, seconds, processes, keep)
    elif processes.first:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        save_checkpoint(out, {"step": step, "seconds": seconds, **state}, keep)


@contextmanager
def stop_on_signals():
    """In here Ctrl-C and SIGTERM ask for a stop at the end of the step instead of breaking off within it."""
    stop, handlers = {"asked": False}, {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.signal(number, lambda *_: stop.update(asked=True))
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

"""
Run folders: what training leaves behind, and how everything else reads it.

  config.json     the settings of the run, the shape of its model, its tokenizer
  log.jsonl       one line a step
  checkpoint.*    see lib/checkpoint.py
  tokenizer file  if the tokenizer has one (tokenizer.model, tekken.json, tokenizer.json)

Wherever a run folder is asked for, a folder of official or Hugging Face weights with its tokenizer file serves as well.
"""

import json
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from beyond.kinds import ThinkingConfig, thinking_model
from beyond.lora import add_lora, merge_lora, rank_in
from lib.checkpoint import (
    checked_weight,
    checkpoints,
    finish_move,
    load_tensors,
    read_checkpoint,
    save_checkpoint,
)
from lib.config import settings
from lib.files import (
    absent,
    brief,
    check,
    finite,
    parse_json,
    read_json,
    reading,
    replace_file,
    write_json,
)
from lib.parallel import average_metrics, barrier, slice_like, to_full
from lib.published import THINKS, VOCABULARY, is_published, read_published
from lib.tokenizer import from_json, load_tokenizer
from lib.weights import load_mistral
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR


def what_is_kept(folder):
    """For an error message: is there a checkpoint to go on from?"""
    found = checkpoints(folder)
    return (
        f"the last good checkpoint is kept ({found[0]})" if found else "there is no checkpoint yet"
    )


def steps_done(folder):
    return read_checkpoint(folder)["step"] if checkpoints(folder) else 0


def read_config(folder):
    """The settings of a run, a dict of dicts. Raises ValueError."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise ValueError(f"{folder} is no run of train.py (it has no config.json)")
    train = {
        "objective": Literal["quiet_star", "lm"],
        "data": str,
        "init_from": str,
        "span": int,
        "seed": int,
    }
    wanted = {"train": train, "model": dict, "quiet_star": dict, "tokenizer": dict}
    config = read_json(path, wanted, "is not the configuration of a run")
    check(config.setdefault("data", {}), dict, f"data in {path}")  # once, runs did not note it
    return {key: config[key] for key in (*wanted, "data")}


def log_line(metrics):
    """A line of log.jsonl, bytes: numbers to six digits that count."""
    line = {
        name: float(f"{value:.6g}") if isinstance(value, float) else value
        for name, value in metrics.items()
    }
    return json.dumps(finite(line)).encode() + b"\n"


def read_log(folder):
    """The lines of log.jsonl, a list of dicts; what was cut short, and all after it, is left out."""
    path, lines = Path(folder) / "log.jsonl", []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            lines.append(parse_json(line, {"step": int, "seconds": float, str: float | None}))
        except ValueError:
            break
    return lines


def load_weights(module, weights, path, assign=False, but=()):
    """module.load_state_dict, strictly; the first tensor that does not fit is named with both shapes (ValueError).
    assign: as torch has it. but: how the names begin of what is there already."""
    wanted = {name: x for name, x in module.state_dict().items() if not name.startswith(but)}
    for name in sorted(wanted.keys() | weights.keys()):
        shapes = [tuple(x[name].shape) if name in x else "nothing" for x in (weights, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path} does not fit this model: it holds {shapes[0]} for {name}, {shapes[1]} is wanted"
            )
    weights = {
        name: checked_weight(x, name, path).to(wanted[name].dtype) for name, x in weights.items()
    }
    weights = {name: slice_like(x, wanted[name]) for name, x in weights.items()}
    module.load_state_dict(weights, strict=not but, assign=assign)


def thinking(model, config, weights):
    """A QuietSTaR of a Transformer, with what is not of the paper attached where `weights` hold it (see beyond/)."""
    gain_head = any(name.startswith("gain_head.") for name in weights)
    return thinking_model(model, settings(ThinkingConfig, {**config, "gain_head": gain_head}))


def load_run(folder, device="cpu"):
    """The model of a run: (model, tokenizer, config, step). A Transformer if objective=lm, else a QuietSTaR."""
    config, state = read_config(folder), read_checkpoint(folder)
    tokenizer = from_json(config["tokenizer"], folder)
    with (
        reading(Path(folder) / "config.json", "does not fit the checkpoint beside it"),
        torch.device("meta"),
    ):
        shape = settings(
            ModelConfig, config["model"]
        )  # and on "meta" memory is wanted for nothing that is not there
        if not any(
            name.endswith(f"layers.{shape.n_layers - 1}.ffn_norm.weight") for name in state["model"]
        ):
            raise ValueError(f"there are no {shape.n_layers} layers")
        model = transformer = Transformer(shape)
        if rank := rank_in(state["model"]):
            add_lora(transformer, rank)
        if config["train"]["objective"] == "quiet_star":
            model = thinking(transformer, config["quiet_star"], state["model"])
    load_weights(model, state["model"], Path(folder) / "checkpoint.pt", assign=True)
    transformer.tie()
    if rank:
        merge_lora(transformer)
    return model.to(device).eval(), tokenizer, config, state["step"]


def load_model(folder, device="cpu", dtype=torch.float32):
    """The model of a run, or of a folder of weights (see lib/weights.py): (model, tokenizer, config, step), as
    load_run; weights from elsewhere have neither config nor steps: (model, tokenizer, None, 0). A QuietSTaR, if what
    makes them think is there: beside weights that `export` wrote, among those that the authors published.

    dtype: of the weights. No copy of them in another one is made."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(absent(folder, "a run, or weights with their tokenizer, is wanted"))
    if not any(
        any(folder.glob(name)) for name in ("params.json", "*.safetensors", "pytorch_model*.bin")
    ):
        if not (folder / "config.json").exists():
            weights = "params.json with consolidated.*, or config.json with model*.safetensors"
            raise ValueError(
                f"{folder} holds neither a run (config.json, checkpoint.pt) nor weights ({weights})"
            )
        model, *rest = load_run(folder)
        return model.to(device, dtype), *rest
    tokenizer, published = load_tokenizer(folder), is_published(folder)
    size = min(tokenizer.vocab_size, VOCABULARY) if published else tokenizer.vocab_size
    model = load_mistral(folder, dtype, size, THINKS if published else ())
    if model.config.vocab_size < size:
        raise ValueError(
            f"the tokenizer in {folder} has {size} tokens, the model {model.config.vocab_size}"
        )
    path = folder / "quiet_star.pt"
    if published:
        weights, config = read_published(folder, dtype)
        model = thinking(model, config, weights).to(dtype)
        load_weights(model, weights, folder, but="model.")
    elif path.exists() or path.with_suffix(".json").exists():
        weights, config = load_tensors(path), read_json(path.with_suffix(".json"))
        with reading(path, "or quiet_star.json beside it is damaged"):
            check(weights, {str: torch.Tensor})
            model = thinking(model, config, weights).to(dtype)
        load_weights(model, weights, path, but="model.")
    return model.to(device).eval(), tokenizer, None, 0


@dataclass
class LoadConfig:
    dtype: Literal["float32", "bfloat16"] = (
        "float32"  # of the weights; bfloat16 takes half the memory
    )
    thought_len: int | None = None  # sampled tokens of a thought; none: as many as in training
    thought_temperature: float = (
        0.0  # of the thoughts; 0: always the likeliest token; 1: as in training
    )
    start_text: str = ""  # let start and end of thought be this text's mean embedding; empty: as they were learned


def load_to_think(folder, device, load):
    """load_model with the settings of a LoadConfig: (model, tokenizer, config, step)."""
    model, tokenizer, config, step = load_model(folder, device, getattr(torch, load.dtype))
    if isinstance(model, QuietSTaR):
        length = model.config.thought_len if load.thought_len is None else load.thought_len
        model = model.with_settings(
            thought_len=length, thought_temperature=load.thought_temperature
        )
        if load.start_text:
            start_thoughts(model, tokenizer, load.start_text)
    return model, tokenizer, config, step


def start_thoughts(quiet, tokenizer, start_text, end_text):
    """Let start and end of thought be the mean embeddings of two texts. Raises ValueError if the
    tokenizer does not know them."""
    table = quiet.model.tok_embeddings.weight
    ids = [tokenizer.encode(text) for text in (start_text, end_text)]
    set_start_and_end(quiet, *(table[i].mean(0) for i in ids))


@torch.no_grad()
def set_start_and_end(quiet, start, end):
    """Let start and end of thought be these vectors (C,)."""
    tokens = quiet.thought_tokens
    tokens.start.copy_(start / tokens.scale)
    tokens.end.copy_(end / tokens.scale)


def last_run():
    """The folder in out/ whose thinking model was saved last; it says which. Raises ValueError."""
    found = sorted(
        Path("out").glob("**/checkpoint*.pt"), key=lambda path: path.lstat().st_mtime, reverse=True
    )
    for folder in dict.fromkeys(path.parent for path in found):
        if checkpoints(folder) and read_config(folder)["train"]["objective"] == "quiet_star":
            print(
                f"the run that was trained last: {folder} (another: --run=FOLDER)", file=sys.stderr
            )
            return folder
    raise ValueError(
        "no thinking model in out/ yet: train one (python train.py), or name one with --run"
    )


# what may change when a run goes on; everything else would make it another run
MAY_CHANGE = set(
    "max_steps micro_batch think_at_once fast eval_every eval_texts save_every parallel device out "
    "base_preset".split()
)


def open_run(out, wanted, defaults, model, optimizer, tokenizer, processes):
    """Go on with the run in `out`, or begin it: (steps done, seconds they took). Raises ValueError, OSError.
    wanted: its settings. defaults: {name: value} of settings, for those that are newer than the run."""
    out = Path(out)
    if (out / "config.json").exists():
        refuse_another_run(out, wanted, defaults)
    step, seconds = 0, 0.0
    if checkpoints(out):
        state = read_checkpoint(out, mmap=True)
        load_weights(model, state["model"], out / "checkpoint.pt")
        with reading(out / "checkpoint.pt", "does not fit this optimizer"):
            load_optimizer(optimizer, state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    barrier(processes)
    if processes.first:
        finish_move(out, 2)
        tokenizer.save(out)
        write_json(out / "config.json", wanted)
        kept = [
            line for line in read_log(out) if line["step"] <= step
        ]  # steps after the checkpoint are done anew
        replace_file(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())
    barrier(processes)
    return step, seconds


def load_optimizer(optimizer, state):
    """optimizer.load_state_dict, after a look at the shapes: torch does not look, and would write beyond what is there.
    Raises ValueError."""
    for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        kept = state["state"].get(i)
        if kept is None:  # it had no gradient yet
            continue
        if kept["step"].dim() or not kept["exp_avg"].shape == kept["exp_avg_sq"].shape == p.shape:
            raise ValueError(
                f"it holds {tuple(kept['exp_avg'].shape)} for a tensor of {tuple(p.shape)}"
            )
        state["state"][i] = {name: slice_like(x, p) if x.dim() else x for name, x in kept.items()}
    optimizer.load_state_dict(
        {"state": state["state"], "param_groups": optimizer.state_dict()["param_groups"]}
    )


def refuse_another_run(out, wanted, defaults):
    """Raise ValueError if the run in `out` is not the one that is wanted."""
    old = read_config(out)
    for part in ("train", "model", "quiet_star", "tokenizer", "data"):
        if part == "quiet_star" and wanted["train"]["objective"] == "lm":
            continue
        for name, value in wanted[part].items():
            was = old[part].get(name, defaults.get(name, value if part == "data" else None))
            if name not in MAY_CHANGE and was != value:
                what = f"{name} is {brief(repr(was))} there, {value!r} here"
                raise ValueError(f"{out} holds another run ({what}): choose another --out")


def save_run(out, model, optimizer, step, seconds, processes):
    """Write a checkpoint of the run in `out`. Raises OSError, and ValueError if the weights are not finite."""
    good = all(
        getattr(p, "to_local", p.detach)().isfinite().all() for p in model.parameters()
    )  # of slices: its own
    if average_metrics({"good": float(good)}, processes)["good"] < 1:
        raise ValueError(f"the weights are not finite after step {step}")
    state = to_full({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, processes)
    if processes.first:
        save_checkpoint(out, {"step": step, "seconds": seconds, **state})


@contextmanager
def stop_on_signals():
    """In here Ctrl-C, SIGTERM, a closed terminal and Slurm's SIGUSR1 ask for a stop at the end of the step instead of
    breaking off within it."""
    stop, handlers = {"asked": False}, {}
    for number in (
        getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    ):
        if number and not (
            number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN
        ):  # nohup
            handlers[number] = signal.signal(number, lambda *_: stop.update(asked=True))
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

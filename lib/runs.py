"""
Run folders: what training leaves behind, and how everything else reads it.

  config.json       the settings of the run, the shape of its model, its tokenizer
  log.jsonl         one line a step
  checkpoint_*.pt   see lib/checkpoint.py
  a tokenizer file  if the tokenizer has one

A folder of weights with their tokenizer (lib/weights.py) serves wherever a run only has to be read.
"""

import glob
import json
import math
import signal
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from beyond.kinds import ThinkingConfig, thinking_model
from beyond.lora import add_lora, merge_lora
from lib.checkpoint import check_state, checkpoints, load_tensors, read_checkpoint, save_checkpoint
from lib.config import settings
from lib.files import (
    folder_kind,
    parse_json,
    read_json,
    reading,
    refuse_changes,
    replace_file,
    write_json,
)
from lib.published import THINKS, VOCABULARY, read_published
from lib.tokenizer import from_json, load_tokenizer
from lib.weights import SkipInit, load_mistral
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR

FORMAT = 3  # of config.json; runs of commit 5897d14 have 2, those before 9226c12 none
TRAIN = {"objective": str, "data": str, "init_from": str, "span": int, "lora_rank": int}
SECTIONS = {"train": TRAIN, "model": dict, "quiet_star": dict, "tokenizer": dict, "data": dict}
MAY_CHANGE = (  # the settings that may change when a run goes on; its data is known by checksums
    "max_steps micro_batch think_at_once fast eval_every eval_texts save_every parallel device out "
    "data base_preset"
).split()


def read_config(folder):
    """The settings of a run: {section: {name: value}}. Raises ValueError if the folder holds no
    run, or anything else as well."""
    path, kind = Path(folder) / "config.json", folder_kind(folder)
    if not kind:
        hub = "hf download NAME --local-dir=FOLDER fetches weights"
        raise ValueError(f"there is neither a run nor weights in {folder} ({hub})")
    if kind != {"run"}:
        raise ValueError(f"{folder} holds {' and '.join(sorted(kind))}: it must hold a run alone")
    if read_json(path).get("format") != FORMAT:
        raise ValueError(f"{path} is no run of this version; commit 5897d14 reads those before it")
    return read_json(path, SECTIONS)


def log_line(metrics):
    """A line of log.jsonl, as bytes. JSON has no numbers that are not finite: they become null."""
    line = {name: x if math.isfinite(x) else None for name, x in metrics.items()}
    return json.dumps(line).encode() + b"\n"


def read_log(folder):
    """The lines of log.jsonl, a list of dicts, up to the first that is cut short."""
    path, lines = Path(folder) / "log.jsonl", []
    with reading(path), suppress(FileNotFoundError, ValueError):
        for line in path.read_bytes().splitlines():
            lines.append(parse_json(line, {"step": int, "seconds": float, str: float | None}))
    return lines


def steps_done(folder):
    """The step of the checkpoint that a run goes on from, 0 without one. Raises ValueError."""
    return read_checkpoint(folder)["step"] if checkpoints(folder) else 0


def load_run(folder, device="cpu"):
    """The model of a run, a Transformer or QuietSTaR: (model, tokenizer, config, step). Raises
    ValueError. What LoRA (beyond/lora.py) learned is added to the weights."""
    path = Path(folder) / "config.json"
    config, state = read_config(folder), read_checkpoint(folder)
    tokenizer, weights = from_json(config["tokenizer"], folder), state["model"]
    with reading(path, "does not fit the checkpoint beside it"), torch.device("meta"), SkipInit():
        model = transformer = Transformer(settings(ModelConfig, config["model"]))
        if rank := config["train"]["lora_rank"]:
            add_lora(transformer, rank)
        if config["train"]["objective"] == "quiet_star":
            model = thinking_model(transformer, settings(ThinkingConfig, config["quiet_star"]))
        model.load_state_dict(weights, assign=True)
    transformer.tie()
    if rank:
        merge_lora(transformer)
    return model.to(device).eval(), tokenizer, config, state["step"]


def load_model(folder, device="cpu", dtype=torch.float32):
    """The model of a run, or of a folder of weights, in a dtype: (model, tokenizer, config, step).
    Weights have no config and no steps: None and 0. They are a QuietSTaR if `export` or the
    paper's authors (lib/published.py) stored one there. Raises ValueError."""
    folder, kind = Path(folder), folder_kind(folder)
    if "weights" not in kind or "run" in kind:
        model, *rest = load_run(folder)
        return model.to(device, dtype), *rest
    tokenizer, published = load_tokenizer(folder), read_published(folder, dtype)
    size = min(tokenizer.vocab_size, VOCABULARY) if published else tokenizer.vocab_size
    model = load_mistral(folder, dtype, size, THINKS if published else ())
    if model.config.vocab_size < size:
        problem = f"has {size} tokens, the model {model.config.vocab_size}"
        raise ValueError(f"the tokenizer in {folder} {problem}")
    path, config = folder / "quiet_star.json", None
    if published:
        weights, config = published
    elif path.exists() or path.with_suffix(".pt").exists():
        weights, config = load_tensors(path.with_suffix(".pt")), read_json(path)
        check_state(weights, path.with_suffix(".pt"))
    if config:
        with reading(path, "does not fit the weights beside it"):
            quiet = thinking_model(model, settings(ThinkingConfig, config)).to(dtype)
            parts = {name: part for name, part in quiet.named_children() if part is not model}
            torch.nn.ModuleDict(parts).load_state_dict(weights)  # the rest is loaded already
        model = quiet
    return model.to(device).eval(), tokenizer, None, 0


@dataclass
class LoadConfig:
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the weights
    thought_len: int | None = None  # sampled tokens of a thought; none: as many as in training
    thought_temperature: float = 0.0  # of the thoughts; 0: the likeliest token; 1: as in training
    start_text: str = ""  # let start and end of thought be this text's mean embedding, if not empty


def load_to_think(folder, device, load):
    """load_model with the settings of a LoadConfig: (model, tokenizer, config, step)."""
    model, tokenizer, config, step = load_model(folder, device, getattr(torch, load.dtype))
    if isinstance(model, QuietSTaR):
        length = model.config.thought_len if load.thought_len is None else load.thought_len
        temperature = load.thought_temperature
        model = model.with_settings(thought_len=length, thought_temperature=temperature)
        if load.start_text:
            start_thoughts(model, tokenizer, load.start_text, load.start_text)
    return model, tokenizer, config, step


def start_thoughts(quiet, tokenizer, start_text, end_text):
    """Let start and end of thought be the mean embeddings of two texts. Raises ValueError if the
    tokenizer does not know them."""
    table = quiet.model.tok_embeddings.weight
    ids = [tokenizer.encode(text) for text in (start_text, end_text)]
    set_start_and_end(quiet, *(table[i].float().mean(0) for i in ids))


@torch.no_grad()
def set_start_and_end(quiet, start, end):
    """Let start and end of thought be these vectors (C,)."""
    tokens = quiet.thought_tokens
    tokens.start.copy_(start / tokens.scale)
    tokens.end.copy_(end / tokens.scale)


def last_run():
    """The folder in out/ whose thinking model was saved last. Raises ValueError."""
    paths = map(Path, glob.glob("out/**/checkpoint_*.pt", recursive=True))  # follows links
    for path in sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True):
        if read_config(path.parent)["train"]["objective"] == "quiet_star":
            print(f"--run={path.parent}, the run that was trained last", file=sys.stderr)
            return path.parent
    raise ValueError("no thinking model in out/ yet: python train.py, or name one with --run")


def open_run(out, wanted, model, optimizer, tokenizer, processes):
    """Go on with the run in `out`, or begin it: (steps done, seconds they took, metrics of the last
    one if the log lacks them). wanted: its settings, {section: {name: value}}. Raises ValueError,
    OSError."""
    out, step, seconds, unlogged = Path(out), 0, 0.0, None
    if folder_kind(out):
        old = read_config(out)
        for section in SECTIONS if checkpoints(out) else ():  # what has no steps may change
            refuse_changes(out, old[section], wanted[section], MAY_CHANGE)
    if checkpoints(out):
        state = read_checkpoint(out)
        with reading(out, "does not fit this model and optimizer"):
            set_whole_state(model, optimizer, state)
        step, seconds = state["step"], state["metrics"]["seconds"]
    log = [line for line in read_log(out) if line["step"] <= step]
    if step and all(line["step"] != step for line in log):
        unlogged = state["metrics"]
    if processes.first:
        tokenizer.save(out)
        write_json(out / "config.json", {"format": FORMAT, **wanted})
        lines = [json.dumps(line) + "\n" for line in log]
        replace_file(out / "log.jsonl", "".join(lines).encode())
    return step, seconds, unlogged


def save_run(out, model, optimizer, metrics, processes):
    """Write a checkpoint of the run after the step that has these metrics. Raises OSError, and
    ValueError if a weight is not finite."""
    state = {"step": metrics["step"], "metrics": metrics, **whole_state(model, optimizer)}
    if processes.first:
        save_checkpoint(out, state)


def whole_state(model, optimizer):
    """All weights and moments in one piece on the CPU, however they are spread over processes."""
    from torch.distributed.checkpoint import state_dict as whole  # here, because it takes a second

    how = whole.StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, moments = whole.get_state_dict(model, optimizer, options=how)
    return {"model": weights, "optimizer": moments}


def set_whole_state(model, optimizer, state):
    """Let model and optimizer, or this process's parts of them, have a `whole_state`."""
    from torch.distributed.checkpoint import state_dict as whole

    how = whole.StateDictOptions(full_state_dict=True, cpu_offload=True)
    values = {"model_state_dict": state["model"], "optim_state_dict": state["optimizer"]}
    whole.set_state_dict(model, optimizer, options=how, **values)


@contextmanager
def stop_on_signals():
    """Ctrl-C, SIGTERM, Slurm's SIGUSR1 and SIGHUP (the terminal was closed) set stop["asked"] in
    here and do nothing else. Under nohup SIGHUP is ignored, and stays so."""
    stop, handlers = {"asked": False}, {}
    for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has only the first two
        if number and (name != "SIGHUP" or signal.getsignal(number) != signal.SIG_IGN):
            handlers[number] = signal.signal(number, lambda *_: stop.update(asked=True))
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

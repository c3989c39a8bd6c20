"""
Run folders: what training leaves behind, and how everything else reads it.

  config.json     the settings of the run, the shape of its model, its tokenizer
  log.jsonl       one line a step
  checkpoint.pt   tensors and plain numbers, read with weights_only=True: never unpickled
"""

import json
import os
from pathlib import Path

import torch

from data.dataset import replace_file
from data.tokenizer import from_json
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR, QuietSTaRConfig


def save_checkpoint(folder, state):
    """Write checkpoint.pt under a temporary name, make sure it is on disk, and rename: never half a checkpoint."""
    path = Path(folder) / "checkpoint.pt"
    temporary = Path(f"{path}.tmp")
    with open(temporary, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path


def load_checkpoint(folder, device="cpu"):
    """The state that save_checkpoint wrote. Raises ValueError, in one line, if it is missing or damaged."""
    path = Path(folder) / "checkpoint.pt"
    if not path.exists():
        raise ValueError(f"there is no checkpoint in {folder}: train one with train.py --out={folder}")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # whatever torch raises on bytes that are not a checkpoint: it is one thing to the user
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is damaged or cut short ({reason}): restore it, or delete it to start anew") from None


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
    model = Transformer(ModelConfig(**config["model"]))
    if config["train"]["objective"] == "quiet_star":
        model = QuietSTaR(model, QuietSTaRConfig(**config["quiet_star"]))
    load_weights(model, state["model"], Path(folder) / "checkpoint.pt")
    return model.to(device).eval(), from_json(config["tokenizer"]), config, state["step"]


def read_log(folder):
    """The lines of log.jsonl, a list of dicts; a last line that was cut short is left out."""
    path, lines = Path(folder) / "log.jsonl", []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines

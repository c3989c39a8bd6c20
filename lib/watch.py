"""
What one watches in training: memory, and what the model says to itself. Of the latter thoughts.jsonl, beside log.jsonl,
gets a few lines at each look at held-out text:

  {"step": 50, "text": " what it has read", "thought": "...", "next": "the true token", "reward": 0.4, "gate": 0.2}

The thoughts are sampled as in training, always at the same places and with the same noise; the reward is log p of the
n_true true tokens with the thought minus that without, in nats.
"""

import json
import re
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from lean.log_prob import text_loss
from lib.files import finite, parse_json, replace_file


@torch.no_grad()
def some_thoughts(model, tokens, tokenizer, count=4):
    """A few thoughts of a QuietSTaR about a text, tokens (1, L): a list of dicts."""
    model = model.with_settings(n_thoughts=1)
    everywhere = model.default_positions(tokens)
    positions = everywhere[:, torch.linspace(0, everywhere.shape[1] - 1, count + 1).long()[1:]]
    noise = torch.rand(
        1, 1, count, model.config.thought_len, generator=torch.Generator().manual_seed(0)
    )
    text = model.read_text(tokens)
    thoughts = model.think(tokens, None, positions, noise.to(tokens.device), text)
    targets = model.targets(
        tokens, positions, None, text_loss(model.model.output, text.hidden, tokens)[1]
    )
    learned = model.learn(thoughts, *model.talk(thoughts.h_base, thoughts.h_thought), targets)
    words, found = tokenizer.words(tokens[0].tolist()), []
    for s, i in enumerate(positions[0].tolist()):
        said = "".join(tokenizer.words(thoughts.tokens[0, 0, s].tolist()))
        about = {
            "text": "".join(words[max(0, i - 30) : i + 1]),
            "thought": said,
            "next": words[i + 1],
        }
        found.append(
            {
                **about,
                "reward": float(learned.reward[0, 0, s]),
                "gate": float(learned.gate[0, 0, s, -model.config.n_true]),
            }
        )
    return found


def log_thoughts(out, step, found):
    """Add them to thoughts.jsonl of a run; what is there of this step or a later one was before an interruption."""
    path, lines = Path(out) / "thoughts.jsonl", []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        with suppress(ValueError):
            if parse_json(line, {"step": int})["step"] < step:
                lines.append(line)
    lines += [json.dumps(finite({"step": step, **one})).encode() for one in found]
    replace_file(path, b"".join(line + b"\n" for line in lines))


def most_memory(device, forget=False):
    """The most bytes this process ever had in use; forget: from now on."""
    if device == "cuda":
        if forget:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():  # no Linux: since the process began
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
    if forget:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024

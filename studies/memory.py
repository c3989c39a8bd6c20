"""
What fits? The memory of a training step with --fast by a formula, before you ask for the GPUs.

    python -m studies.memory --config=config/mistral7b.toml --gpus=8

It is to within 15 % what small models need (tests/studies/test_studies_memory.py). Libraries want a
GB or so beside it.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from beyond.kinds import ThinkingConfig, thinking_model
from beyond.lora import add_lora
from fast import CHUNK_NUMBERS
from lib.config import run_script
from lib.runs import load_model
from model import ModelConfig, Transformer
from train import TrainConfig


@dataclass
class MemoryConfig:
    gpus: int = 8  # that share the work

    def __post_init__(self):
        if self.gpus < 1:
            raise ValueError("gpus must be at least 1")


def passes(config):
    """What each forward pass of fast.py reads at a position that thinks, [(thoughts, steps of
    each)]: start once for all, then t_1 .. t_m; and with the last of them all that is known, end
    (of thoughts of any length, m + 1 ends) and the true tokens but the last."""
    m, N, last = config.thought_len, config.n_thoughts, config.n_true
    last += m if config.thought_kind == "any_length" else 0
    return [(1, 1), *[(N, 1)] * (m - 1), (N, 1 + last)] if m else [(1, 1 + last)]


def tokens_read(config):
    """How many tokens fast.py reads at a position that thinks."""
    return sum(thoughts * steps for thoughts, steps in passes(config))


def activations(shape, config, B, L, S, width):
    """Bytes that a step keeps for its backward pass: of B texts of L tokens, and of their thoughts
    at S positions. width: bytes of a number in linear maps; norms and softmax keep float32."""
    q, k = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    # in and out of two norms; queries, keys and values; what w1, silu, w3 and their product give
    token = 4 * 6 * shape.dim + width * (2 * q + 2 * k + 4 * shape.hidden_dim)
    probability = 4 if width == 4 else 4 + width  # of the attention, and cast
    position, depth = 0, 0
    for thoughts, steps in passes(config):
        depth += steps
        attention = width * q + probability * shape.n_heads * (L + depth)
        position += thoughts * (steps * (token + attention) + width * 2 * k * depth)
    mixing = 4 * 8 * shape.dim * config.n_thoughts * (steps - 1)  # of the last pass
    return shape.n_layers * B * L * token, B * S * (shape.n_layers * position + mixing)


def plan(gpus, train, shape, config):
    """Bytes on each GPU: {way to share the work: {what: bytes}}."""
    with torch.device("meta"):  # shapes, but no numbers
        quiet = thinking_model(Transformer(shape), replace(config, end_id=0))
        if train.lora_rank:
            add_lora(quiet.model, train.lora_rank)
    numbers = sum(p.numel() for p in quiet.parameters())
    learned = sum(p.numel() for p in quiet.parameters() if p.requires_grad)
    width = 4 if train.dtype == "float32" else 2
    B, L = train.micro_batch or math.ceil(train.batch_size / gpus), train.span + config.n_true
    S = math.ceil(train.span * (1 if train.think_at == "all" else train.think_share))
    at_once = min(S, train.think_at_once or S)
    text, thoughts = activations(shape, config, B, L, at_once, width)
    sampled = B * config.n_thoughts * at_once * shape.vocab_size
    logits = 4 * 3 * max(sampled, CHUNK_NUMBERS["cuda"])
    of_step = {"texts": text, "thoughts": thoughts, "logits": logits}
    weights = 4 * learned + width * (numbers - learned)
    state = {"weights": weights, "gradients": 4 * learned, "moments of AdamW": 8 * learned}
    cast = width * learned if width < 4 else 0
    sums = 4 * learned if at_once < S else 0  # the gradient of a part, beside their sum
    ways = {"data": {**state, "copies": cast + sums, **of_step}}
    if not train.lora_rank:
        slices = {what: size / gpus for what, size in state.items()}
        # gathered: the weights, their gradient until it is sent, and that of a part beside it
        ways["fsdp"] = {**slices, "copies": (3 if sums else 2) * width * learned, **of_step}
    return ways


def memory(config, train, shape, thinking):
    """Print the plan."""
    if Path(train.init_from).is_dir():  # else the shape that the settings tell
        start = load_model(train.init_from, dtype=None)[0]
        shape = getattr(start, "model", start).config
    ways = plan(config.gpus, train, shape, thinking)
    totals = {way: {**sizes, "total": sum(sizes.values())} for way, sizes in ways.items()}
    print(f"a model of {shape.n_layers} layers of width {shape.dim}, {shape.vocab_size} tokens")
    print(f"GB on each of {config.gpus} GPUs, with --parallel=" + ", ".join(ways))
    for what in totals["data"]:
        print(f"{what:20}" + "".join(f"{sizes[what] / 1e9:>10.1f}" for sizes in totals.values()))


if __name__ == "__main__":
    run_script("memory.py", __doc__, memory, MemoryConfig, TrainConfig, ModelConfig, ThinkingConfig)

"""
What does thinking cost? Ratios within one run, which mean something anywhere.

    python -m studies.bench                            the default shape
    OMP_NUM_THREADS=1 python -m studies.bench --dim=512 --n_layers=8 --head_dim=64 --n_heads=8 \\
        --n_kv_heads=4 --hidden_dim=1408 --vocab_size=8192 --span=128 --texts=2 --thought_len=9 \\
        --n_true=4 --n_thoughts=2

  fast over plain        a training step in the form of fast.py over plain language modelling of as
                         many tokens as it reads, in texts of the same length: 1 is the floor
  obvious over fast      the same step in the form of quiet_star.py, if it has one
  think over generate    a generated token after a thought (thought_len + 1 passes) over one without
"""

import os
import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal

import torch
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile

from beyond.kinds import ThinkingConfig, thinking_model
from lib.config import run_script
from lib.parallel import pick_device
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR, generate_with_thoughts
from studies.memory import tokens_read


@dataclass
class BenchConfig:
    texts: int = 16  # texts in a training step
    span: int = 64  # positions that think in each
    repeats: int = 5  # timed runs; the fastest counts
    new_tokens: int = 128  # tokens generated
    rows: int = 1  # texts at once in generation
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda, in bfloat16, where there is one

    def __post_init__(self):
        if min(self.texts, self.span, self.repeats, self.new_tokens, self.rows) < 1:
            raise ValueError("texts, span, repeats, new_tokens and rows must be at least 1")


def fastest(functions, repeats, device="cpu"):
    """The least seconds of each function of {name: function}. They run in turn, so that a slow
    moment of the machine hits all alike."""
    times = {name: [] for name in functions}
    for _ in range(repeats + 1):  # the first is a warm-up
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    return {name: min(seconds[1:]) for name, seconds in times.items()}


def peak_bytes(function, device="cpu"):
    """The most bytes in use at once while function() runs, above those before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        return torch.cuda.max_memory_allocated() - before
    os.environ["KINETO_LOG_LEVEL"] = "99"  # or the profiler says that it starts and stops
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = [x for x in profiled.profiler.kineto_results.events() if x.name() == "[memory]"]
    return max(accumulate(x.nbytes() for x in sorted(events, key=lambda x: x.start_ns())))


def bench(config, shape, thinking_config):
    """All figures of one shape."""
    device = pick_device(config.device)
    torch.manual_seed(1337)
    model, V, S = Transformer(shape).to(device), shape.vocab_size, config.span
    forms = {"fast": thinking_model(model, thinking_config)}
    forms["obvious"] = thinking_model(model, thinking_config, fast=False)
    if type(forms["obvious"]) is not QuietSTaR:  # only the paper's own settings have that form
        del forms["obvious"]
    for form in forms.values():  # at a gate of 0 there would be no rewards
        torch.nn.init.normal_(form.to(device).mixing_head.last.weight, std=0.02)
    tokens = torch.randint(V, (config.texts, S + thinking_config.n_true), device=device)
    as_many = tokens.numel() + config.texts * S * tokens_read(thinking_config)
    plain_tokens = torch.randint(V, (round(as_many / S), S + 1), device=device)
    autocast = partial(torch.autocast, device, torch.bfloat16, enabled=device == "cuda")

    def think(form):
        with autocast():
            loss, _ = form(tokens)
        loss.backward()

    def plain():  # in parts that use no more memory than they must to be fast
        for part in plain_tokens.split(max(1, (1024 if device == "cpu" else 16384) // S)):
            with autocast():
                logits = model.logits(model(part[:, :-1]))
                loss = cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())
            loss.backward()

    steps = {"plain": plain} | {name: partial(think, form) for name, form in forms.items()}
    seconds = fastest(steps, config.repeats, device)
    memory = {name: peak_bytes(step, device) for name, step in steps.items()}
    prompt = torch.randint(V, (config.rows, 16), device=device), config.new_tokens
    think_and_speak = partial(generate_with_thoughts, forms["fast"], *prompt)
    ways = {"think": think_and_speak, "generate": partial(model.generate, *prompt)}
    with torch.no_grad():
        seconds |= fastest(ways, config.repeats, device)
    print(f"{'':20}{'seconds':>12}{'memory':>12}")
    for title in ("fast over plain", "obvious over fast", "think over generate"):
        a, b = title.split(" over ")
        cells = [f"{found[a] / found[b]:>12.3g}" for found in (seconds, memory) if a in found]
        if cells:
            print(f"{title:20}" + "".join(cells))
    print(f"fast alone: {seconds['fast']:.3g} seconds, {memory['fast']:,} bytes")


if __name__ == "__main__":
    classes = BenchConfig, ModelConfig, ThinkingConfig
    run_script("bench.py", __doc__, bench, *classes, argv=["--vocab_size=42", *sys.argv[1:]])

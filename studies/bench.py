"""
What does thinking cost? All figures are ratios within one run, so that they mean something on any machine.

    python -m studies.bench                            the miniature's shape
    python -m studies.bench --threads=1 --dim=512 --n_layers=8 --head_dim=64 --n_heads=8 --n_kv_heads=4 \\
        --hidden_dim=1408 --vocab_size=8192 --span=128 --texts=2 --thought_len=9 --n_true=4 --n_thoughts=2 --rows=1

  train step / floor    a Quiet-STaR training step over a plain language-model forward and backward of as many token
                        positions, in texts of the same length: 1.0 is the floor
  peak memory / floor   what the two need at most above the weights and gradients they start with
  recompute             the same step with --recompute, over that without: seconds, peak memory
  hard                  seconds of a step that thinks at the hardest positions (--think_share), over those of all
  growth                seconds of a step with half as many texts of twice the length, over those of the step
  generate over plain   seconds per generated token, thinking before each, over plain generation, by texts at once;
                        and (times) that of one text over the thought_len + 1 forward passes which a token costs
  where it pays         the same, thinking before --think_share_spoken of the tokens, each text at its own pace
                        (beyond/own_pace.py); and (waiting) where texts wait for those that think

    python -m studies.bench memory --config=config/mistral7b.toml --gpus=8     what fits, without trying (memory.py)
"""

import json
import multiprocessing
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from beyond.own_pace import generate_at_own_pace
from lib.watch import most_memory

from beyond.adaptive import some_think, worth_its_price
from beyond.positions import hard_positions
from lib.config import run_script
from lib.parallel import pick_device
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR, QuietSTaRConfig, generate_with_thoughts


@dataclass
class BenchConfig:
    texts: int = 16  # texts in a training step
    span: int = 64  # positions that think in each
    think_share: float = 0.25  # share of positions that think in the row "thinking at the hardest"
    think_at_once: int = (
        0  # positions of a text that think together; 0: as many as is good (see train.py)
    )
    recompute: bool = False  # sample first, then learn (see train.py)
    repeats: int = 5  # timed runs; the fastest counts
    new_tokens: int = 128  # tokens generated
    rows: str = "1,8,32"  # texts at once in generation
    think_share_spoken: float = (
        0.09  # share of the tokens before which the model thinks in the rows "where it pays"
    )
    threads: int = 0  # CPU threads; 0: as torch chooses
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    dtype: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # bfloat16: autocast; auto: on cuda (see train.py)
    )
    json: bool = False  # print one JSON object instead of the table
    gate: float = 0.02  # standard deviation of the mixing head's last weights
    seed: int = 1337  # of weights and tokens

    def __post_init__(self):
        if (
            min(self.texts, self.span, self.repeats, self.new_tokens) < 1
            or not 0 < self.think_share <= 1
        ):
            raise ValueError(
                "texts, span, repeats and new_tokens must be at least 1, think_share a share above 0"
            )
        if not all(x.strip().isdigit() and int(x) for x in self.rows.split(",")):
            raise ValueError(f"rows must be numbers with commas between them, not {self.rows!r}")


def fastest(functions, repeats, device):
    """The least seconds of each function, run in turn so that a slow moment of the machine hits all alike."""

    def now():
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(function):
        start = now()
        function()
        return now() - start

    times = [[seconds(f) for f in functions] for _ in range(repeats)]
    return [min(column) for column in zip(*times, strict=True)]


def seconds_per_token(quiet, text, price, repeats=3, device="cpu"):
    """Seconds per token of a given text (B, T), read as it would be written: thinking before each token, nowhere, and
    where it is worth its price, each row at its own pace or (waiting) all together; and the share of tokens before
    which it thinks, then."""
    read, how_long = (
        partial(generate_with_thoughts, quiet, text, 1, temperature=0, begin=1),
        worth_its_price(quiet, price),
    )
    ways = {
        "everywhere": read,
        "nowhere": partial(
            read, think=some_think(lambda h: torch.full((len(h),), -1, device=h.device))
        ),
        "where_it_pays": partial(
            generate_at_own_pace, quiet, text, 1, how_long, temperature=0, begin=1
        ),
        "waiting": partial(read, think=some_think(how_long)),
    }
    _, _, gates = ways["where_it_pays"]()  # warm up
    times = [x / text.numel() for x in fastest(list(ways.values()), repeats, device)]
    return {
        **dict(zip(ways, times, strict=True)),
        "share_thinking": float((gates != 0).float().mean()),
    }


def read_per_token(quiet_config, share=1.0):
    """How many tokens a training step reads per token of text, if a share of the positions thinks."""
    each = quiet_config.thought_len + 1 + quiet_config.n_true
    if quiet_config.thought_kind == "any_length":  # an end after each prefix
        each += quiet_config.thought_len
    return 1 + share * quiet_config.n_thoughts * each


def speaking(quiet, prompts, new_tokens, share, repeats, device):
    """Seconds per generated token, over plain generation: thinking everywhere; at a share of the positions, drawn by
    chance, each row at its own pace; and the same where rows wait for those that think."""

    def by_chance():
        chance = torch.Generator(device).manual_seed(
            0
        )  # the same draws in each run, so that all have as many thoughts

        def how_long(h):
            thinks = torch.rand(len(h), generator=chance, device=h.device) < share
            return torch.where(thinks, quiet.config.thought_len, -1)

        return how_long

    asked = prompts, new_tokens
    ways = [
        partial(quiet.model.generate, *asked, temperature=0),
        partial(generate_with_thoughts, quiet, *asked, temperature=0),
        lambda: generate_at_own_pace(quiet, *asked, by_chance(), temperature=0),
        lambda: generate_with_thoughts(quiet, *asked, temperature=0, think=some_think(by_chance())),
    ]
    ways[0]()  # warm up
    plain, *times = fastest(ways, repeats, device)
    names = "generate_over_plain", "where_it_pays_over_plain", "waiting_over_plain"
    return {
        "plain_seconds_per_token": plain / new_tokens,
        **{n: x / plain for n, x in zip(names, times, strict=True)},
    }


class Work:
    """The model, and the two things that are compared in training."""

    def __init__(self, bench, model_config, quiet_config, device):
        if bench.threads:
            torch.set_num_threads(min(bench.threads, 1024))
        torch.manual_seed(bench.seed)
        self.quiet = QuietSTaR(Transformer(model_config), quiet_config).to(device)
        # A gate of exactly 0 would make all rewards equal, and REINFORCE would have nothing to do.
        torch.nn.init.normal_(self.quiet.mixing_head.last.weight, std=bench.gate)
        self.bench, self.device = bench, device
        a, V = quiet_config.n_true, model_config.vocab_size
        # As many token positions: every text's own, and for each of them all that its thoughts read.
        self.copies = int(read_per_token(quiet_config))
        self.texts = torch.randint(V, (bench.texts, bench.span + a), device=device)
        self.plain_texts = torch.randint(
            V, (bench.texts * self.copies, bench.span + 1), device=device
        )
        for p in self.quiet.parameters():
            p.grad = torch.zeros_like(p)

    def autocast(self):
        half = (
            self.bench.dtype == "bfloat16" or self.bench.dtype == "auto" and self.device == "cuda"
        )
        return torch.autocast(self.device, torch.bfloat16, enabled=half)

    def think(self, where=None):
        with self.autocast():
            how = dict(
                where=where, at_once=self.bench.think_at_once, recompute=self.bench.recompute
            )
            self.quiet.backward(self.texts, **how)

    def think_at_hard(self):
        self.think(partial(hard_positions, self.quiet, share=self.bench.think_share))

    def plain(self):
        """Forward and backward, in chunks that use no more memory than they must to be fast."""
        model = self.quiet.model
        tokens_at_once = 512 if self.device == "cpu" else 16384
        for tokens in self.plain_texts.split(max(1, tokens_at_once // self.bench.span)):
            with self.autocast():
                logits = model.logits(model(tokens[:, :-1])).float().flatten(0, 1)
                loss = F.cross_entropy(logits, tokens[:, 1:].flatten(), reduction="sum")
            loss.backward()


def memory_of(which, *settings):
    """Bytes in use at most in one training step, above those before. On a CPU call it in a fresh process: memory that
    the allocator kept from earlier work would not count."""
    work = Work(*settings)
    before = most_memory(work.device, forget=True)
    getattr(work, which)()
    return most_memory(work.device) - before


def show(found, as_json):
    """Print what was found: one JSON object, or a line a figure (times are in seconds)."""
    if as_json:
        return print(json.dumps(found))
    for name, value in found.items():
        print(
            f"{name.replace('_', ' '):36}{value:>14.4g}"
            if isinstance(value, float)
            else f"{name:36}{value!s:>14}"
        )


def bench(config, model_config, quiet_config):
    """All figures of one shape."""
    device = pick_device(config.device)
    settings = config, model_config, quiet_config, device
    again = replace(config, recompute=True), *settings[1:]
    to_measure = ("think", *settings), ("plain", *settings), ("think", *again)
    if device == "cuda":
        memory = [memory_of(*which) for which in to_measure]
    else:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            memory = pool.starmap(memory_of, to_measure, chunksize=1)

    work = Work(*settings)
    steps = [work.think, work.plain, Work(*again).think, work.think_at_hard]
    if config.texts % 2 == 0:
        steps.append(
            Work(
                replace(config, texts=config.texts // 2, span=2 * config.span), *settings[1:]
            ).think
        )
    for step in steps:
        step()  # warm up
    think, plain, recompute, hard, *longer = fastest(steps, config.repeats, device)

    quiet, length, speak = work.quiet.eval(), min(16, config.span), {}
    for rows in map(int, config.rows.split(",")):
        prompts = torch.randint(model_config.vocab_size, (rows, length), device=device)
        how = config.new_tokens, config.think_share_spoken, config.repeats, device
        speak[rows] = speaking(quiet, prompts, *how)

    found = {
        "train_step_over_floor": think / plain,
        "train_peak_memory_over_floor": memory[0] / memory[1],
        **{
            f"{name}, {rows} texts": x for rows, found in speak.items() for name, x in found.items()
        },
        "generate_over_plain_times": next(iter(speak.values()))["generate_over_plain"]
        / (quiet_config.thought_len + 1),
        "recompute_time_ratio": recompute / think,
        "recompute_memory_ratio": memory[2] / memory[0],
        "growth_when_T_doubles": longer[0] / think if longer else None,
        "hard_step_over_all": hard / think,
        "train_step_seconds": think,
        "train_floor_seconds": plain,
        "train_peak_bytes": memory[0],
        "recompute_peak_bytes": memory[2],
        "train_floor_peak_bytes": memory[1],
        "train_peak_bytes_per_text_token": memory[0] / (config.texts * config.span),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name()
        if device == "cuda"
        else f"cpu ({platform.machine()})",
        "shape": {
            "texts": config.texts,
            "span": config.span,
            **asdict(model_config),
            **asdict(quiet_config),
        },
    }
    show(found, config.json)


def main():
    if sys.argv[1:2] == ["memory"]:
        from studies import memory  # it wants parts of torch that take long to import

        return memory.main(sys.argv[2:])
    classes = BenchConfig, ModelConfig, QuietSTaRConfig
    run_script("bench.py", __doc__, bench, *classes, argv=["--vocab_size=42", *sys.argv[1:]])


if __name__ == "__main__":
    main()

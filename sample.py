"""
Give a model a prompt and see it continue:
    python sample.py --run=assets/miniature --prompt=$'\\n3849=' --show_thoughts
"""

import re
from dataclasses import dataclass
from typing import Literal

import torch

from beyond.adaptive import think_some, worth_its_price
from lib.config import run_script
from lib.parallel import pick_device
from lib.runs import LoadConfig, last_run, load_to_think
from quiet_star import QuietSTaR


@dataclass
class SampleConfig:
    run: str = ""  # run folder; empty: the last thinking one in out/
    prompt: str = "\n"  # text to continue
    max_new_tokens: int = 20  # tokens to add
    temperature: float = 0.0  # of the tokens that are emitted; 0: always the likeliest
    show_thoughts: bool = False  # a line for each token: gate, token, and the thought before it
    without_thoughts: bool = False  # let the same model continue without thinking
    price: float | None = None  # think where a thought should gain so many nats a token
    seed: int = 1337  # of the sampling
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one


def say(config, load=None):
    """Print how a model continues the prompt, token by token."""
    device, load = pick_device(config.device), load or LoadConfig()
    model, tokenizer, run, _ = load_to_think(config.run or last_run(), device, load)
    ids = tokenizer.encode(config.prompt or "\n", bos=not run)  # runs here have read no beginnings
    how = torch.tensor([ids], device=device), config.max_new_tokens, config.temperature
    generator = torch.Generator(device).manual_seed(config.seed)
    if isinstance(model, QuietSTaR) and not config.without_thoughts:
        price = config.price
        think = None if price is None else think_some(worth_its_price(model, price))
        steps = model.speak(*how, load.thought_temperature, generator, think=think)
    else:
        plain = getattr(model, "model", model).stream(*how, generator)
        steps = ((token, token[:0], 0.0) for token in plain)
    print(config.prompt, end="\n gate  token           thought before it" * config.show_thoughts)
    controls = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"  # terminals obey them
    for token, thought, gate in steps:
        ids.append(int(token))
        if ids[-1] in tokenizer.ends:
            break
        text = tokenizer.words(ids)[-1]
        if config.show_thoughts:  # ids below 0 stand for what was not thought
            words = tokenizer.decode(thought[thought >= 0].tolist())
            text = f"\n{float(gate):5.2f}  {text!r:14}  {words!r}"
        print(re.sub(controls, lambda c: f"\\x{ord(c[0]):02x}", text), end="", flush=True)
    print()


if __name__ == "__main__":
    run_script("sample.py", __doc__, say, SampleConfig, LoadConfig)

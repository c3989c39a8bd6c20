"""
Give a model a prompt and see it continue.

    python sample.py --prompt="3849=" --show_thoughts          the last run in out/
    python sample.py --run=out/mine --prompt="ROMEO:" --max_new_tokens=200
    python sample.py --prompt="3849=" --show_thoughts --price=0.02     thinking only where, and as long as, it pays

With --show_thoughts, each new token comes with the hidden thought before it and the gate: how much the thought counted.
"""

import re
from dataclasses import dataclass
from typing import Literal

from beyond.adaptive import worth_its_price
from lib.asking import think_aloud
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
    show_thoughts: bool = False  # print the thought before each token
    without_thoughts: bool = False  # let the same model continue without thinking
    price: float = float(
        "-inf"
    )  # think where, and so long as, it should gain so many nats a token; -inf: always
    seed: int = 1337  # of the sampling
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    ANY_NUMBER = ("price",)

    def __post_init__(self):
        if self.max_new_tokens < 1 or self.temperature < 0:
            raise ValueError("max_new_tokens must be at least 1, the temperature at least 0")
        if not self.prompt:
            raise ValueError("the prompt must not be empty: a model continues something")


def say(config, load=None):
    """Print the prompt and what the model makes of it."""
    device, load = pick_device(config.device), load or LoadConfig()
    model, tokenizer, _, _ = load_to_think(config.run or last_run(), device, load)
    thinking, how_long = isinstance(model, QuietSTaR) and not config.without_thoughts, None
    if thinking and config.price > float("-inf"):
        how_long = worth_its_price(model, config.price)
    how = (
        config.max_new_tokens,
        config.temperature,
        load.thought_temperature,
        config.seed,
        how_long,
        thinking,
    )
    said = []
    for token in think_aloud(model, tokenizer, config.prompt, *how):
        if not said:
            print(printable(config.prompt), end="")
        print(printable(token.text), end="", flush=True)
        said.append(token)
    print()
    if thinking and config.show_thoughts:
        print("\n gate  token           thought before it")
        for token in said:  # "": it did not think
            print(
                f"{token.gate:5.2f}  {token.text!r:14}  {'' if token.thought is None else repr(token.thought)}"
            )


def printable(text):
    """A text whose control characters, but for line ends and tabs, are spelled out: a terminal would obey them."""
    controls = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
    return re.sub(controls, lambda match: f"\\x{ord(match[0]):02x}", text)


if __name__ == "__main__":
    run_script("sample.py", __doc__, say, SampleConfig, LoadConfig)

"""Each choice of each setting of training with each choice of every other one."""

import math
from dataclasses import fields
from typing import get_args

import pytest
from tiny_runs import go

from beyond.kinds import ThinkingConfig
from lib.runs import read_log
from train import TrainConfig

NUMBERS = dict(n_thoughts=1, n_true=2, thought_len=0, thought_temperature=0, lora_rank=2, lr=0)
NOT_HERE = {"objective", "parallel", "device"}
BASE = "--n_thoughts=2 --thought_len=2 --max_steps=2 --span=6 --batch_size=2".split()
VECTORS = {"--thought_kind=soft", "--thought_kind=latent"}  # these have nothing to reinforce
ANY_LENGTH = "--thought_kind=any_length"
OTHER_CREDIT = {"--credit=star", "--credit=posterior", "--mixing=none"}


def choices():
    """{setting: its flags, without the default}: all that are named or yes or no, and NUMBERS."""
    found = {name: [f"--{name}={value}"] for name, value in NUMBERS.items()}
    for field in [x for cls in (TrainConfig, ThinkingConfig) for x in fields(cls)]:
        if field.type is bool:
            found[field.name] = [f"--no-{field.name}" if field.default else f"--{field.name}"]
        elif names := [x for x in get_args(field.type) if isinstance(x, str)]:
            found[field.name] = [f"--{field.name}={x}" for x in names if x != field.default]
    return {name: found[name] for name in sorted(found.keys() - NOT_HERE)}


CHOICES = choices()


def is_senseless(pair):
    """Settings that do not go together, by beyond/kinds.py."""
    of_kind, gain_head = any("thought_kind" in x for x in pair), "--gain_head" in pair
    other_credit = pair & OTHER_CREDIT and (of_kind or gain_head)
    any_length = ANY_LENGTH in pair
    return (
        other_credit
        or (of_kind and gain_head and not any_length)
        or (any_length and "--n_true=2" in pair)
        or pair == {"--lr=0", "--mixing=none"}
    )


@pytest.mark.parametrize("name", CHOICES)
def test_pairs_of_settings_train_or_are_refused_in_one_line(name, work):
    """Catches two settings that nobody tried together: a traceback, a loss that is not finite, a
    refusal of what should work. A run takes two steps, is saved and looks at held-out text.
    Each setting alone: a checkpoint that cannot be gone on from."""
    others = [flag for other in CHOICES if other > name for flag in CHOICES[other]]
    for number, flag in enumerate(CHOICES[name]):
        for other in ["", *others]:
            pair, out = {flag, other} - {""}, f"{number}{other}"
            flags = [*BASE, *sorted(pair), f"--out={out}"]
            flags += ["--reinforce_weight=0", "--n_thoughts=1"] if pair & VECTORS else []
            flags += ["--end_text=b"] if "--thought_kind=ended" in pair else []
            print(*flags)  # shown if it fails
            if is_senseless(pair):
                with pytest.raises(SystemExit) as stop:
                    go(work, *flags)
                line = str(stop.value.code)
                assert "\n" not in line and any(x.strip("-").split("=")[0] in line for x in pair)
                continue
            go(work, *flags)
            losses = [line["loss"] for line in read_log(work / out)]
            assert len(losses) == 2 and all(map(math.isfinite, losses))
            if not other:  # it opens what it saved, and has nothing left to do
                go(work, *flags)

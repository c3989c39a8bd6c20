"""Each choice of each setting of training with each choice of every other one."""

import math

import pytest
from tiny_runs import go

from lib.runs import read_log

CHOICES = {  # beside those of BASE, which are the others
    "thought_kind": ["any_length", "soft", "latent"],
    "credit": ["star", "posterior"],
    "mixing": ["none"],
    "gain_head": [True],
    "think_at": ["hard", "aloud", "start", "random"],
    "baseline": ["all", "none"],
    "reward_on": ["thought"],
    "clamp_advantage": [False],
    "n_thoughts": [1],
    "n_true": [2],
    "thought_len": [0],
    "thought_temperature": [0],
    "fast": [True],
    "separate_documents": [True],
    "lora_rank": [2],
    "dtype": ["bfloat16"],
}
BASE = "--think_at=all --n_thoughts=2 --thought_len=2 --max_steps=2 --span=6 --batch_size=2".split()
VECTORS = {"thought_kind=soft", "thought_kind=latent"}  # these have nothing to reinforce
OTHER_CREDIT = {"credit=star", "credit=posterior", "mixing=none"}


def flags_of(name, choice):
    if isinstance(choice, bool):
        return [f"--{name}" if choice else f"--no-{name}"]
    nothing_to_reinforce = ["--reinforce_weight=0", "--n_thoughts=1"]
    return [f"--{name}={choice}", *(nothing_to_reinforce if choice in ("soft", "latent") else [])]


def is_senseless(one, other):
    """Settings that do not go together, by the docstring of beyond/kinds.py."""
    pair = {one, other}
    if pair & OTHER_CREDIT and pair & {*VECTORS, "thought_kind=any_length", "gain_head=True"}:
        return True
    return pair == {"thought_kind=any_length", "n_true=2"} or (
        bool(pair & VECTORS) and "gain_head=True" in pair
    )


@pytest.mark.parametrize("name", CHOICES)
def test_pairs_of_settings_train_or_are_refused_in_one_line(name, work):
    """Catches two settings that nobody tried together: a traceback, a loss that is not finite, a
    refusal of what should work. A run takes two steps, is saved and looks at held-out text."""
    names = list(CHOICES)
    others = [(x, choice) for x in names[names.index(name) + 1 :] for choice in CHOICES[x]]
    for choice in CHOICES[name]:
        for number, other in enumerate([None, *others]):
            out = f"{choice}_{number}"
            flags = [*BASE, *flags_of(name, choice), *(flags_of(*other) if other else [])]
            if other and is_senseless(f"{name}={choice}", "{}={}".format(*other)):
                with pytest.raises(SystemExit) as stop:
                    go(work, *flags, f"--out={out}")
                line = str(stop.value.code)
                assert "\n" not in line and any(x in line for x in (name, other[0])), flags
                continue
            try:
                go(work, *flags, f"--out={out}")
            except BaseException as error:
                pytest.fail(f"{flags}: {error!r}")
            losses = [line["loss"] for line in read_log(work / out)]
            assert len(losses) == 2 and all(map(math.isfinite, losses)), flags

"""Training runs of a model so small that a test can make several."""

import runpy
from pathlib import Path

import pytest
import torch

import train as trainer
from lib.checkpoint import read_checkpoint
from lib.runs import read_log

ROOT = Path(__file__).resolve().parents[1]
SHAPE = "--dim=16 --n_layers=1 --head_dim=8 --hidden_dim=24 --n_heads=2 --n_kv_heads=1".split()
COMMON = (
    "--span=12 --batch_size=4 --eval_texts=2 --device=cpu --start_text=b --base_preset=".split()
)


def as_typed(script):
    """Run a script of this project in this process, with the command line in sys.argv."""
    runpy.run_path(str(ROOT / script), run_name="__main__")


def flags(work, *more):
    paths = [f"--{k}={work / v}" for k, v in (("data", "data"), ("init_from", "base"))]
    more = [
        f"{name}={work / value}"
        if value and name in ("--out", "--init_from", "--data")
        else f"{name}{is_}{value}"
        for name, is_, value in (flag.partition("=") for flag in more)
    ]
    return [*COMMON, *paths, *more]


def go(work, *more):
    """Train in this process."""
    trainer.run(*trainer.settings_from(flags(work, *more)))


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def first_moments(folder):
    """Adam's first moments: after one step, a tenth of the gradient."""
    return [state["exp_avg"] for state in read_checkpoint(folder)["optimizer"]["state"].values()]


def agree(one, other):
    a, b = read_log(one), read_log(other)
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        for name in ("loss", "nll_base", "reward", "grad_norm"):
            if name in x:
                assert x[name] == pytest.approx(y[name], abs=3e-5), name
    for x, y in zip(first_moments(one), first_moments(other), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)


def refusal(work, *more):
    """The one line that a run is refused with."""
    with pytest.raises(SystemExit) as stop:
        go(work, *more)
    message = str(stop.value.code)
    assert message.startswith("train.py: error: ") and "\n" not in message
    return message

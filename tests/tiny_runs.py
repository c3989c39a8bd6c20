"""Training runs of a model so small that a test can make several."""

import runpy
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import train as trainer
from lib.checkpoint import read_checkpoint
from lib.runs import read_log

ROOT = Path(__file__).resolve().parents[1]
SHAPE = [f"--config={ROOT / 'tests' / 'tiny.toml'}"]
COMMON = "--span=12 --batch_size=4 --eval_texts=2 --device=cpu --start_text=b".split()
COMMON.append("--base_preset=")


def as_typed(script, *flags):
    """Run a script of this project in this process, as if typed with these flags."""
    with patch("sys.argv", [script, *flags]):
        runpy.run_path(str(ROOT / script), run_name="__main__")


def flags(work, *more):
    """The command line of a run whose data, base model and folders lie in a folder `work`."""
    line = [*COMMON, f"--data={work / 'data'}", f"--init_from={work / 'base'}"]
    for flag in more:
        name, is_, value = flag.partition("=")
        if value and name in ("--out", "--init_from", "--data"):
            value = work / value
        line.append(f"{name}{is_}{value}")
    return line


def go(work, *more):
    """Train in this process."""
    trainer.run(*trainer.settings_from(flags(work, *more)))


def losses(work, *names):
    """The losses that runs have logged, a list for each."""
    return [[line["loss"] for line in read_log(work / name)] for name in names]


def same(a, b):
    """Are two state dicts the same, bit for bit?"""
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


def agree(one, other):
    """Two runs have logged the same numbers, and their last gradients were the same."""
    a, b = read_log(one), read_log(other)
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x.keys() - {"tokens_per_second", "seconds", "peak_memory_gb"}:
            assert x[name] == pytest.approx(y[name], abs=3e-5), name
    states, others = (read_checkpoint(run)["optimizer"]["state"] for run in (one, other))
    assert states.keys() == others.keys()
    for i, state in states.items():  # after one step, Adam's first moment is a tenth of a gradient
        torch.testing.assert_close(state["exp_avg"], others[i]["exp_avg"], atol=1e-6, rtol=1e-4)


def refusal(work, *more):
    """The one line that a run is refused with."""
    with pytest.raises(SystemExit) as stop:
        go(work, *more)
    message = str(stop.value.code)
    assert message.startswith("train.py: error: ") and "\n" not in message
    return message

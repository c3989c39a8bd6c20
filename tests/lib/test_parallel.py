"""Many processes are one: gradients, checkpoints, and what happens when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from tiny_runs import ROOT, SHAPE, agree, flags, go, losses, refusal, same
from torch.testing import assert_close

import train as trainer
from lib.checkpoint import checkpoints, read_checkpoint
from lib.export import export
from lib.parallel import start_processes
from lib.runs import load_run, read_log
from lib.weights import load_mistral

MANY = """
import json, sys
import torch, train
torch.set_num_threads(1)
for arguments in json.loads(sys.argv[1]):
    train.run(*train.settings_from(arguments))
"""
EIGHT = ["--batch_size=8", "--eval_texts=4", "--init_from=base3"]


@pytest.fixture
def deep(work):
    """The same with a base model of three layers, and one that shares embeddings and head."""
    new = [*SHAPE, "--objective=lm", "--init_from=", "--max_steps=3"]
    for name, more in {"base3": "", "tied": "tied_embeddings = true\n"}.items():
        (work / f"{name}.toml").write_text(f"n_layers = 3\n{more}")
        go(work, *new, f"--config={work / name}.toml", f"--out={name}")
    return work


def torchrun(processes, *command):
    command = ["torch.distributed.run", f"--nproc_per_node={processes}", "--standalone", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, **how)


def launch(folder, processes, *runs):
    """Train all runs (lists of flags) one after the other in so many processes."""
    (folder / "many.py").write_text(MANY)
    lines = json.dumps([flags(folder, *run) for run in runs])
    process = torchrun(processes, str(folder / "many.py"), lines)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return output + errors


WAYS = {
    "texts": ["--parallel=data"],
    "fsdp": ["--parallel=fsdp", "--micro_batch=1"],
    "fast_fsdp": ["--parallel=fsdp", "--fast"],
    "fast_parts": ["--parallel=fsdp", "--fast", "--think_at_once=2", "--micro_batch=1"],
    "lm_data": ["--objective=lm", "--parallel=data", "--micro_batch=1"],
    "lm_fsdp": ["--objective=lm", "--parallel=fsdp"],
    "tied_fsdp": ["--parallel=fsdp", "--init_from=tied"],
}


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_in_any_mode_trains_as_one(deep, processes):
    """Catches a gradient that is summed, halved, lost or left over from the step before, and
    processes that read the same texts."""
    common = ["--max_steps=3", *EIGHT, "--eval_every=2", "--reward_on=thought"]
    common += ["--mixing_head_lr=0.15", "--lr=3e-3", "--warmup_steps=0"]
    alone = {"quiet": [], "fast": ["--fast"]}
    alone |= {"lm": ["--objective=lm"], "tied": ["--init_from=tied"]}
    for name, way in alone.items():
        go(deep, f"--out=one_{name}", *common, *way)
    runs = [[f"--out={name}", *common, *way] for name, way in WAYS.items()]
    assert f"on {processes} x cpu" in launch(deep, processes, *runs)
    for name in WAYS:
        kind = name.split("_")[0]
        agree(deep / f"one_{kind if kind in alone else 'quiet'}", deep / name)


def test_a_run_goes_on_in_any_number_of_processes_and_any_mode(deep):
    """Two and four that share the model, one that does, and one alone; from the checkpoint before,
    where the last is damaged. Catches what it leaves that cannot be loaded or started from."""
    settings = ["--save_every=1", *EIGHT, "--min_lr_share=1"]
    sharded = ["--out=sharded", "--parallel=fsdp", *settings]
    go(deep, "--out=one", *settings, "--max_steps=7")
    launch(deep, 2, [*sharded, "--max_steps=3"])
    folder = deep / "sharded"
    damaged = checkpoints(folder)[0]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    output = launch(deep, 4, [*sharded, "--max_steps=4"])
    assert damaged.name in output and "checkpoint_00000002.pt" in output
    assert [line["step"] for line in read_log(folder)] == [1, 2, 3, 4]
    go(deep, *sharded, "--max_steps=6")
    torch.distributed.destroy_process_group()
    go(deep, "--out=sharded", *settings, "--max_steps=7")

    alone, together = losses(deep, "one", "sharded")
    assert alone == pytest.approx(together, abs=2e-5) and len(alone) == 7
    one, other = (load_run(deep / name)[0].state_dict() for name in ("one", "sharded"))
    for name, x in one.items():
        assert_close(other[name], x, atol=2e-4, rtol=1e-3)
    assert not list(folder.glob("*new*")) and read_checkpoint(folder)["step"] == 7

    export(folder, deep / "exported")
    again = load_mistral(deep / "exported").state_dict()
    assert all(torch.equal(other[f"model.{name}"], x) for name, x in again.items())
    go(deep, "--out=from_sharded", "--init_from=sharded", "--max_steps=1")


@pytest.mark.parametrize("setting", ["RANK=x", "WORLD_SIZE=0", "LOCAL_RANK=-1", "RANK=3", "RANK=²"])
def test_a_wrong_environment_is_one_line_that_names_it(setting, monkeypatch):
    """Catches "invalid literal", and a process of no rank that trains and saves nothing."""
    monkeypatch.setenv(*setting.split("="))
    with pytest.raises(ValueError, match=setting):
        start_processes("cpu", "data")


def test_processes_wait_for_each_other_as_long_as_it_takes(monkeypatch):
    """Catches processes that give up, after half an hour, while the first prepares a long text."""
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda _, **how: given.update(how))
    given = {}
    start_processes("cpu", "fsdp")
    assert given["timeout"] > timedelta(days=9)


def test_a_full_disk_in_a_sharded_run_is_one_line(deep, monkeypatch):
    """Catches a failed save that takes the checkpoint before with it, or ends in a traceback."""
    sharded = ["--out=sharded", "--parallel=fsdp", "--save_every=1"]
    go(deep, *sharded, "--max_steps=1")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib.checkpoint.torch.save", full)
    message = refusal(deep, *sharded, "--max_steps=2")
    assert "No space left on device" in message and str(checkpoints(deep / "sharded")[0]) in message
    assert read_checkpoint(deep / "sharded")["step"] == 1
    torch.distributed.destroy_process_group()


def test_bfloat16_shards_learn_in_float32(deep, monkeypatch):
    """Catches gradients or weights that are kept in bfloat16, which only gathers them, and thoughts
    that are drawn by numbers of so few bits."""
    think, kinds = trainer.QuietSTaR.think, set()

    def watched(self, text, positions, thoughts=None, noise=None):
        kinds.update([noise.dtype] if noise is not None else [])
        return think(self, text, positions, thoughts, noise)

    monkeypatch.setattr(trainer.QuietSTaR, "think", watched)
    settings = ["--init_from=base3", "--max_steps=3", "--dtype=bfloat16", "--lr=1e-6"]
    go(deep, "--out=plain", *settings)
    go(deep, "--out=sharded", "--parallel=fsdp", *settings)
    torch.distributed.destroy_process_group()
    assert kinds == {torch.float32}
    plain, sharded = losses(deep, "plain", "sharded")
    assert plain == pytest.approx(sharded, abs=1e-2)
    before, after = load_run(deep / "base3")[0], load_run(deep / "sharded")[0].model
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    changes = torch.cat([(x - y).flatten() for x, y in pairs])
    assert after.tok_embeddings.weight.dtype == torch.float32 and 0 < changes.abs().max() < 1e-5


@pytest.mark.parametrize("way", ["data", "fsdp"])
def test_a_killed_worker_leads_to_a_resume_without_a_person(deep, way):
    """Catches a restart that loses steps, when one of two workers is killed in mid-run."""
    run = ["--max_steps=30", "--save_every=2", f"--parallel={way}", "--init_from=base3"]
    launch(deep, 2, ["--out=one", *run])
    process = torchrun(2, "--max_restarts=3", "train.py", *flags(deep, "--out=killed", *run))
    while process.poll() is None and len(read_log(deep / "killed")) < 5:
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    assert "Signal 9" in errors or "SIGKILL" in errors or "exitcode: -9" in errors, errors[-3000:]
    one, again = (read_checkpoint(deep / name) for name in ("one", "killed"))
    assert again["step"] == 30 and same(one["model"], again["model"])
    assert [line["step"] for line in read_log(deep / "killed")] == list(range(1, 31))

"""Many processes are one: gradients, checkpoints, and what happens when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import ROOT, flags, go

import train as trainer
from lib.checkpoint import checkpoints, read_checkpoint
from lib.export import export
from lib.runs import load_run, read_log
from lib.weights import load_mistral

MANY = """
import json, sys
import torch, train
torch.set_num_threads(1)
for arguments in json.loads(sys.argv[1]):
    train.run(*train.settings_from(arguments))
"""


@pytest.fixture
def deep(work):
    """The same with a base model of three layers, and one that shares embeddings and head."""
    shape = [
        "--objective=lm",
        "--init_from=",
        "--max_steps=3",
        "--dim=16",
        "--n_layers=3",
        "--head_dim=8",
    ]
    go(work, *shape, "--hidden_dim=24", "--n_heads=2", "--n_kv_heads=1", "--out=base3")
    go(
        work,
        *shape,
        "--hidden_dim=24",
        "--n_heads=2",
        "--n_kv_heads=1",
        "--out=tied",
        "--tied_embeddings",
    )
    return work


def launch(folder, processes, *runs):
    """Train all runs (lists of flags) one after the other in as many processes as said."""
    (folder / "many.py").write_text(MANY)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        "--standalone",
    ]
    command += [str(folder / "many.py"), json.dumps([flags(folder, *run) for run in runs])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


WAYS = {
    "data": ["--parallel=data"],
    "fsdp": ["--parallel=fsdp", "--micro_batch=1"],
    "fast_fsdp": ["--parallel=fsdp", "--fast"],
    "fast_parts": ["--parallel=fsdp", "--fast", "--think_at_once=2", "--micro_batch=1"],
    "lm_data": ["--objective=lm", "--parallel=data", "--micro_batch=1"],
    "lm_fsdp": ["--objective=lm", "--parallel=fsdp"],
    "tied_fsdp": ["--parallel=fsdp", "--init_from=tied"],
}


def first_moments(folder):
    """Adam's first moments by name."""
    model = load_run(folder)[0]
    names = {p: name for name, p in model.named_parameters()}
    order = [
        names[p]
        for group in trainer.build_optimizer(model, trainer.TrainConfig()).param_groups
        for p in group["params"]
    ]
    kept = read_checkpoint(folder)["optimizer"]["state"]
    return {name: kept[i]["exp_avg"] for i, name in enumerate(order)}


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_any_number_of_processes_in_any_mode_trains_as_one(deep, processes):
    """Three steps: a gradient that is summed, halved, lost or left over from the step before shows."""
    common = [
        "--max_steps=3",
        "--batch_size=8",
        "--eval_texts=4",
        "--init_from=base3",
        "--eval_every=2",
    ]
    common += ["--reward_on=thought", "--mixing_head_lr=50", "--lr=3e-3", "--warmup_steps=0"]
    alone = {"quiet": [], "fast": ["--fast"]}
    alone |= {"lm": ["--objective=lm"], "tied": ["--init_from=tied"]}
    for name, way in alone.items():
        go(deep, f"--out=one_{name}", *common, *way)
    launch(deep, processes, *[[f"--out={name}", *common, *way] for name, way in WAYS.items()])
    for name in WAYS:
        kind = name.split("_")[0]
        one = deep / f"one_{kind if kind in alone else 'quiet'}"
        wanted, logs = first_moments(one), (read_log(one), read_log(deep / name))
        assert len(logs[0]) == len(logs[1]) == 3
        for x, y in zip(*logs, strict=True):
            for key in x.keys() - {"tokens_per_second", "seconds", "peak_memory_gb"}:
                assert x[key] == pytest.approx(y[key], abs=3e-5), (name, key)
        for key, x in first_moments(deep / name).items():
            torch.testing.assert_close(
                x, wanted[key], atol=1e-6, rtol=1e-4, msg=lambda text: f"{name} {key}: {text}"
            )


def test_a_run_goes_on_in_any_number_of_processes_and_any_mode(deep, capsys):
    """In two and four that share the model, in one that does, and in one alone; from the checkpoint before, where the
    last is damaged. What it leaves can be loaded, exported, and started from."""
    settings = [
        "--save_every=1",
        "--batch_size=8",
        "--eval_texts=4",
        "--init_from=base3",
        "--min_lr_share=1",
    ]
    sharded = ["--out=sharded", "--parallel=fsdp", *settings]
    go(deep, "--out=one", *settings, "--max_steps=7")
    launch(deep, 2, [*sharded, "--max_steps=3"])
    folder = deep / "sharded"
    damaged = checkpoints(folder)[0]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    said = launch(deep, 4, [*sharded, "--max_steps=4"])
    assert f"{damaged.name} is damaged" in said and "checkpoint_00000002.pt" in said
    assert [line["step"] for line in read_log(folder)] == [1, 2, 3, 4]
    go(deep, *sharded, "--max_steps=6")
    torch.distributed.destroy_process_group()
    go(deep, "--out=sharded", *settings, "--max_steps=7")

    losses = [[line["loss"] for line in read_log(deep / name)] for name in ("one", "sharded")]
    assert losses[0] == pytest.approx(losses[1], abs=2e-5) and len(losses[0]) == 7
    one, other = (load_run(deep / name)[0].state_dict() for name in ("one", "sharded"))
    for name, x in one.items():
        torch.testing.assert_close(other[name], x, atol=2e-4, rtol=1e-3)
    assert not list(folder.glob("*new*")) and read_checkpoint(folder)["step"] == 7

    export(folder, deep / "exported")
    again = load_mistral(deep / "exported").state_dict()
    assert all(torch.equal(other[f"model.{name}"], x) for name, x in again.items())
    go(deep, "--out=from_sharded", "--init_from=sharded", "--max_steps=1")


def test_a_full_disk_in_a_sharded_run_is_one_line(deep, monkeypatch):
    sharded = ["--out=sharded", "--parallel=fsdp", "--save_every=1"]
    go(deep, *sharded, "--max_steps=1")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib.checkpoint.torch.save", full)
    with pytest.raises(
        SystemExit, match="No space left on device.*the last good checkpoint is kept"
    ) as stop:
        go(deep, *sharded, "--max_steps=2")
    assert "\n" not in stop.value.code and read_checkpoint(deep / "sharded")["step"] == 1
    torch.distributed.destroy_process_group()


def test_bfloat16_shards_learn_in_float32(deep, monkeypatch):
    """Weights are gathered in bfloat16, gradients and what is kept are float32, and so are the numbers that thoughts
    are drawn with."""
    think, kinds = trainer.QuietSTaR.think, set()

    def watched(self, text, positions, thoughts=None, noise=None):
        kinds.update([noise.dtype] if noise is not None else [])
        return think(self, text, positions, thoughts, noise)

    monkeypatch.setattr(trainer.QuietSTaR, "think", watched)
    for name, way in {"plain": [], "sharded": ["--parallel=fsdp"]}.items():
        go(
            deep,
            f"--out={name}",
            "--init_from=base3",
            "--max_steps=3",
            "--dtype=bfloat16",
            "--lr=1e-6",
            *way,
        )
    torch.distributed.destroy_process_group()
    assert kinds == {torch.float32}
    losses = [[line["loss"] for line in read_log(deep / name)] for name in ("plain", "sharded")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-2)
    before, after = load_run(deep / "base3")[0], load_run(deep / "sharded")[0].model
    changes = torch.cat(
        [(x - y).flatten() for x, y in zip(before.parameters(), after.parameters(), strict=True)]
    )
    assert after.tok_embeddings.weight.dtype == torch.float32 and 0 < changes.abs().max() < 1e-5


@pytest.mark.parametrize("way", ["data", "fsdp"])
def test_a_killed_worker_leads_to_a_resume_without_a_person(deep, way):
    """SIGKILL to one of two workers in mid-run, under torchrun --max_restarts."""
    run = ["--max_steps=30", "--save_every=2", f"--parallel={way}", "--init_from=base3"]
    launch(deep, 2, ["--out=whole", *run])
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        "--max_restarts=3",
    ]
    command += ["train.py", *flags(deep, "--out=killed", *run)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while process.poll() is None and len(read_log(deep / "killed")) < 5:
        time.sleep(0.01)
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    assert "Signal 9" in errors or "SIGKILL" in errors or "exitcode: -9" in errors, errors[-3000:]
    whole, again = (read_checkpoint(deep / name) for name in ("whole", "killed"))
    assert again["step"] == 30 and all(
        torch.equal(x, again["model"][name]) for name, x in whole["model"].items()
    )
    assert [line["step"] for line in read_log(deep / "killed")] == list(range(1, 31))

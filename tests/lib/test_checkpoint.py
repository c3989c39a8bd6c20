"""Nothing that a run has computed is lost: kills, damage, full disks."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_runs import ROOT, flags, go, same

import train as trainer
from lib.checkpoint import checkpoints, read_checkpoint, save_checkpoint
from lib.runs import read_log


def start(work, out, *more):
    command = [sys.executable, str(ROOT / "train.py"), *flags(work, f"--out={out}", *more)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def killed_and_resumed(work, kills, seed):
    """Kill training at random moments, those of saving among them, until it has been killed so often; let it end."""
    rng, settings = np.random.default_rng(seed), ["--max_steps=60", "--save_every=1"]
    go(work, "--out=whole", *settings)
    killed = 0
    while killed < kills:
        process = start(work, "killed", *settings)
        while process.poll() is None and not (work / "killed" / "log.jsonl").exists():
            pass  # it is still starting
        try:
            process.wait(float(rng.uniform(0, 0.6)))
            break  # it has come to its end
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
    process = start(work, "killed", *settings)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    whole, again = (read_checkpoint(work / name) for name in ("whole", "killed"))
    assert again["step"] == 60 and same(whole["model"], again["model"])
    assert [line["step"] for line in read_log(work / "killed")] == list(range(1, 61))
    return killed


def test_killed_at_any_moment_it_goes_on_to_the_same_weights(work):
    assert killed_and_resumed(work, 2, 0)


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path_factory, work):
    killed = 0
    for seed in range(20):
        folder = tmp_path_factory.mktemp("kill")
        for name in ("data", "base"):
            (folder / name).symlink_to(work / name)
        killed += killed_and_resumed(folder, 4, seed)
        if killed >= 20:
            return
    raise AssertionError(f"only {killed} kills")


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:5000] + bytes([b[5000] ^ 1]) + b[5001:]]
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(work, capsys, damage):
    """A flipped bit is found by its checksum; torch alone would load it."""
    go(work, "--out=q", "--max_steps=4", "--save_every=1")
    path = work / "q" / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    assert read_checkpoint(work / "q")["step"] == 3
    assert "going back to checkpoint_before.pt, step 3" in capsys.readouterr().err
    go(work, "--out=q", "--max_steps=4", "--save_every=1")
    go(work, "--out=whole", "--max_steps=4", "--save_every=1")
    assert same(read_checkpoint(work / "q")["model"], read_checkpoint(work / "whole")["model"])
    for path in (work / "q").glob("checkpoint*.pt"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="delete it to start anew"):
        read_checkpoint(work / "q")


@pytest.mark.parametrize("way", [[], ["--parallel=fsdp"]])
def test_the_last_k_checkpoints_are_kept_and_each_serves(work, way):
    go(work, "--out=q", "--max_steps=5", "--save_every=1", "--keep=3", *way)
    names = [f"checkpoint{name}.pt" for name in ("", "_before", "_before_2")]
    assert sorted(path.name for path in (work / "q").glob("checkpoint*pt")) == sorted(names)
    for step, name in zip((5, 4, 3), names, strict=True):
        assert read_checkpoint(work / "q")["step"] == step
        (work / "q" / name).rename(work / name)
    for name in names:
        (work / name).rename(work / "q" / name)
    go(work, "--out=q", "--max_steps=6", "--save_every=1", *way)  # fewer are wanted now
    assert sorted(path.name for path in (work / "q").glob("checkpoint*pt")) == sorted(names[:2])
    if way:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("way", [[], ["--parallel=fsdp"]])
def test_killed_between_its_renames_the_newest_is_loaded_and_nothing_is_lost_by_going_on(work, way):
    """Nor is a copy that somebody made."""
    go(work, "--out=q", "--max_steps=3", "--save_every=1", *way)
    (work / "q" / "checkpoint.pt").rename(work / "q" / "checkpoint_new.pt")
    (work / "q" / "checkpoint_mine.pt").mkdir()
    assert read_checkpoint(work / "q")["step"] == 3
    go(work, "--out=q", "--max_steps=4", "--save_every=1", *way)
    names = {path.name for path in (work / "q").glob("checkpoint*.pt")}
    assert names == {f"checkpoint{name}.pt" for name in ("", "_before", "_mine")}
    for step, name in ((4, "checkpoint"), (3, "checkpoint_before")):
        assert read_checkpoint(work / "q")["step"] == step
        (work / "q" / f"{name}.pt").rename(work / f"{name}.gone")
    if way:
        torch.distributed.destroy_process_group()


def test_a_rotation_that_was_broken_off_anywhere_keeps_what_there_is(tmp_path):
    """With three kept, at each of its renames: the two newest of before are still there after the next save."""

    def state(step):
        return {"step": step, "seconds": 0.0, "model": {}}

    for broken in range(4):
        folder = tmp_path / str(broken)
        folder.mkdir()
        for step in (1, 2, 3):
            save_checkpoint(folder, state(step), keep=3)
        renames, rename = [], os.replace

        def breaks(*paths, broken=broken, renames=renames, rename=rename):
            renames.append(paths)
            if len(renames) > broken + 1:  # the first gives a file that is whole its name
                raise KeyboardInterrupt
            rename(*paths)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lib.checkpoint.os.replace", breaks)
            if broken < 3:
                with pytest.raises(KeyboardInterrupt):
                    save_checkpoint(folder, state(4), keep=3)
            else:
                save_checkpoint(folder, state(4), keep=3)
        assert read_checkpoint(folder)["step"] == 4
        save_checkpoint(folder, state(5), keep=3)
        steps = [torch.load(path, weights_only=True)["step"] for path in checkpoints(folder)]
        assert steps == [5, 4, 3], broken


def test_a_full_disk_is_one_line_and_leaves_the_last_good_checkpoint(work, monkeypatch):
    go(work, "--out=q", "--max_steps=2", "--save_every=1")

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib.checkpoint.torch.save", full)
    with pytest.raises(
        SystemExit, match="No space left on device.*the last good checkpoint is kept"
    ) as stop:
        go(work, "--out=q", "--max_steps=4", "--save_every=1")
    assert "\n" not in stop.value.code and not list((work / "q").glob("*.tmp"))
    assert read_checkpoint(work / "q")["step"] == 2


def test_two_runs_on_one_folder_the_second_refuses(work):
    go(work, "--out=q", "--max_steps=1")
    claimed = trainer.lock(work / "q")
    process = start(work, "q", "--max_steps=2")
    _, errors = process.communicate()
    assert process.returncode == 1 and errors.strip().endswith("right now: choose another --out")
    claimed.close()
    go(work, "--out=q", "--max_steps=2")

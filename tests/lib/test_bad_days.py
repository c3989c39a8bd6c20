"""What happens to a run on a bad day: nothing that was computed is lost, and what is wrong is said in one line."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from tiny_runs import ROOT, flags, go, refusal, same

import train as trainer
from data.dataset import write_dataset
from lib.checkpoint import read_checkpoint
from lib.export import export
from lib.files import lock
from lib.runs import load_model, load_run, read_log
from lib.tokenizer import CharTokenizer
from quiet_star import QuietSTaR


def script(*arguments, **how):
    how = {"cwd": ROOT, **how}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, **how
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("device", ["cuda", pytest.param("mps", marks=pytest.mark.slow)])
def test_a_device_that_is_not_there_is_one_line_about_the_device(work, device):
    go(work, "--out=q", "--max_steps=1")
    for command in (
        ("sample.py", f"--run={work / 'q'}", "--prompt=a"),
        ("eval.py", f"--run={work / 'q'}", f"--base={work / 'base'}"),
        ("train.py", *flags(work, "--out=q2", "--max_steps=1")),
    ):
        if device != "cuda" or not torch.cuda.is_available():
            done = script(*command, f"--device={device}")
            assert (
                done.returncode and "device" in done.stderr.lower() and "damaged" not in done.stderr
            )
            assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("head", ["gain_head.", "model.layers.0."])
def test_a_gradient_that_is_no_number_is_not_stepped_on_though_the_loss_is_finite(
    work, monkeypatch, head
):
    """Nor in the last step."""
    go(work, "--out=q", "--max_steps=1", "--save_every=1")
    before, step = read_checkpoint(work / "q"), trainer.thinking_step

    def spoilt(model, *args):
        metrics = step(model, *args)
        next(p for name, p in model.named_parameters() if name.startswith(head)).grad.view(-1)[
            0
        ] = float("nan")
        return metrics

    monkeypatch.setattr(trainer, "thinking_step", spoilt)
    for steps in ("--max_steps=2", "--max_steps=5"):
        message = refusal(work, "--out=q", "--save_every=1", steps)
        assert "the norm of the gradient is nan at step 1" in message and "checkpoint.pt" in message
        assert f"--init_from={work / 'q'}" in message, "how to go on"
    after = read_checkpoint(work / "q")
    assert after["step"] == 1 and same(before["model"], after["model"])


def test_weights_that_are_not_finite_are_never_saved(work):
    """A step of 1e38 leaves the loss of that step finite, and the weights infinite."""
    message = refusal(
        work, "--out=q", "--lr=3e38", "--warmup_steps=0", "--max_steps=1", "--weight_decay=9"
    )
    assert (
        "the weights are not finite after step 1" in message
        and "there is no checkpoint yet" in message
    )
    go(work, "--out=q2", "--max_steps=1")
    state = read_checkpoint(work / "q2")
    state["model"]["model.norm.weight"][0] = float("inf")
    torch.save(state, work / "q2" / "checkpoint.pt")
    with pytest.raises(ValueError, match="model.norm.weight .*not finite"):
        load_run(work / "q2")


def test_optimizer_state_of_another_shape_is_refused(work):
    """torch looks at no shape and writes beyond what is there."""
    go(work, "--out=q", "--max_steps=1")
    for change in (lambda kept: torch.zeros(1), lambda kept: kept.flatten(), lambda kept: None):
        state = read_checkpoint(work / "q")
        kept = state["optimizer"]["state"][0]
        kept["exp_avg"] = change(kept["exp_avg"])
        torch.save(state, work / "q" / "changed.pt")
        os.replace(work / "q" / "changed.pt", work / "q" / "checkpoint.pt")
        assert "does not fit this optimizer" in refusal(work, "--out=q", "--max_steps=2")
        go(work, "--out=r", "--max_steps=1")
        os.replace(work / "r" / "checkpoint.pt", work / "q" / "checkpoint.pt")


def test_data_made_anew_under_the_same_name_is_noticed(work):
    go(work, "--out=q", "--max_steps=1")
    ids = np.random.default_rng(1).integers(0, 6, 600)
    write_dataset(
        work / "data", {"train": ids, "val": ids[:100]}, CharTokenizer("abcde\n"), document_end=5
    )
    assert "holds another run (checksum of its text is" in refusal(work, "--out=q", "--max_steps=2")


def test_a_small_learning_rate_is_logged_as_what_it_is(work):
    go(work, "--out=q", "--max_steps=2", "--lr=1.23456e-6", "--warmup_steps=0", "--min_lr_share=1")
    assert [line["lr"] for line in read_log(work / "q")] == [1.23456e-6] * 2


@pytest.mark.parametrize(
    "number", [signal.SIGHUP, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_whoever_asks_for_an_end_gets_it_at_the_end_of_a_step(work, number):
    command = [
        sys.executable,
        "train.py",
        *flags(work, "--out=q", "--max_steps=100000", "--save_every=100000"),
    ]
    how = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    how["preexec_fn"] = lambda: signal.signal(
        signal.SIGHUP, signal.SIG_DFL
    )  # these tests may run under nohup
    process = subprocess.Popen(command, cwd=ROOT, **how)
    while process.poll() is None and len(read_log(work / "q")) < 3:
        time.sleep(0.01)
    process.send_signal(number)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "run the same command again to go on" in said, errors
    assert read_checkpoint(work / "q")["step"] == read_log(work / "q")[-1]["step"] >= 3


def test_killed_before_the_move_of_a_checkpoint_everything_still_finds_the_run(work):
    go(work, "--out=out/q", "--max_steps=2", "--save_every=1")
    folder = work / "out" / "q"
    (folder / "checkpoint.pt").rename(folder / "checkpoint_new.pt")
    for command in (
        ("sample.py", "--prompt=a"),
        ("eval.py", "--texts=2"),
    ):  # without --run: the last one in out/
        done = script(ROOT / command[0], *command[1:], "--device=cpu", cwd=work)
        assert done.returncode == 0 and "the run that was trained last: out/q" in done.stderr, (
            done.stderr
        )
    go(
        work, "--out=out/q", "--max_steps=2", "--save_every=1"
    )  # all steps are done; the move is, too, now
    assert sorted(path.name for path in folder.glob("checkpoint*")) == [
        "checkpoint.pt",
        "checkpoint_before.pt",
    ]


def test_folders_of_another_making_are_not_in_the_way(work):
    """What an earlier version left half-written in a sharded run, for one."""
    (work / "q" / "checkpoint_new.dcp").mkdir(parents=True)
    go(work, "--out=q", "--max_steps=1", "--parallel=fsdp")
    torch.distributed.destroy_process_group()
    assert read_checkpoint(work / "q")["step"] == 1
    (work / "r" / "checkpoint.dcp").mkdir(parents=True)
    with pytest.raises(ValueError, match="checkpoint.dcp is of an earlier version"):
        read_checkpoint(work / "r")


def test_an_exported_miniature_loads_again_with_its_alphabet(work):
    go(work, "--out=q", "--max_steps=1")
    export(work / "q", work / "weights")
    again, tokenizer, *_ = load_model(work / "weights")
    assert (
        isinstance(again, QuietSTaR) and tokenizer.to_json() == CharTokenizer("abcde\n").to_json()
    )
    done = script(
        "sample.py",
        f"--run={work / 'weights'}",
        "--prompt=ab",
        "--max_new_tokens=3",
        "--device=cpu",
    )
    assert done.returncode == 0 and done.stdout.startswith("ab")
    go(work, "--out=more", "--init_from=weights", "--max_steps=1")
    (work / "weights" / "quiet_star.pt").unlink()
    with pytest.raises(ValueError, match="quiet_star.pt"):
        load_model(
            work / "weights"
        )  # it thought; without that file it would pass for a plain model


def test_nothing_is_run_that_came_with_somebodys_data(work):
    (work / "foreign").mkdir()
    (work / "foreign" / "prepare.py").write_text(f"open({str(work / 'harmed')!r}, 'w')")
    assert "no data in" in refusal(work, "--out=q", "--data=foreign")
    assert not (work / "harmed").exists()


def test_no_planted_link_is_written_through(work, tmp_path):
    (tmp_path / "theirs").write_text("precious")
    (work / "q").mkdir()
    for name in ("checkpoint_new.pt.tmp", "config.json.tmp", "log.jsonl.tmp"):
        (work / "q" / name).symlink_to(tmp_path / "theirs")
    go(work, "--out=q", "--max_steps=1")
    (work / "p").mkdir()
    (work / "p" / "lock").symlink_to(tmp_path / "theirs")
    assert "lock" in refusal(work, "--out=p", "--max_steps=1") or "symbolic" in refusal(
        work, "--out=p"
    )
    assert (tmp_path / "theirs").read_text() == "precious"


def test_a_drive_without_locks_is_written_to_all_the_same(work, monkeypatch, capsys):
    import errno
    import fcntl

    def none(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    go(work, "--out=q", "--max_steps=1")
    assert "cannot be locked" in capsys.readouterr().err
    monkeypatch.undo()
    with lock(work / "q"), pytest.raises(ValueError, match="another process is training in"):
        lock(work / "q", "training")


def test_control_characters_of_a_model_do_not_reach_the_terminal(work):
    """A model that says \\x1b[2J after everything."""
    ids = [0, 1, 2, 3, 4] * 60
    write_dataset(
        work / "data2", {"train": ids, "val": ids}, CharTokenizer("\x1b[2J\n"), document_end=4
    )
    shape = "--dim=16 --n_layers=1 --head_dim=8 --hidden_dim=24 --n_heads=2 --n_kv_heads=1".split()
    go(work, "--data=data2", "--objective=lm", "--init_from=", "--out=lm", "--max_steps=1", *shape)
    done = script(
        "sample.py",
        f"--run={work / 'lm'}",
        "--prompt=\x1b[2J",
        "--max_new_tokens=9",
        "--device=cpu",
    )
    assert done.returncode == 0 and "\x1b" not in done.stdout and r"\x1b[2J" in done.stdout


def test_whoever_has_read_enough_may_leave_and_any_terminal_will_do(work):
    """A closed standard output, an encoding that lacks a character, a name that is none in it."""
    command = [
        sys.executable,
        "data/arithmetic/prepare.py",
        "--train_documents=20",
        f"--out={work / 'd'}",
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141
    out = work / "caf\udce9 $\\frac$"
    arguments = f"--train_documents=20 --val_documents=9 --out={out}".split(" --")
    for encoding in ("ascii", "utf-8"):
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        command = [
            sys.executable,
            "data/arithmetic/prepare.py",
            *(f"--{x.removeprefix('--')}" for x in arguments),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, env=environment)
        assert done.returncode == 0 and b"tokens" in done.stdout and not done.stderr, done.stderr
    assert json.loads((out / "meta.json").read_text())["tokens"]["train"] > 100
    assert re.search(b"20|caf", done.stdout)

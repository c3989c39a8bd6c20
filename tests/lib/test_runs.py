"""lib/runs.py: runs go on as if nothing had happened, are refused by name, and load again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import ROOT, flags, go, refusal, same

import train as trainer
from data.dataset import write_dataset
from lib.checkpoint import checkpoints, read_checkpoint
from lib.export import export
from lib.runs import last_run, load_model, load_run, log_line, read_config, read_log
from lib.tokenizer import CharTokenizer


@pytest.mark.parametrize("way", [[], ["--parallel=fsdp"], ["--lora_rank=2"]])
def test_a_run_in_two_parts_is_the_run_in_one(work, way):
    """Catches a resume that loses the optimizer's moments, the step or a part of the log, and a
    damaged checkpoint that changes what comes of the run."""
    go(work, "--out=one", "--max_steps=4", *way)
    go(work, "--out=two", "--max_steps=4", "--save_every=2", *way)
    checkpoints(work / "two")[0].write_bytes(b"damaged")
    with open(work / "two" / "log.jsonl", "ab") as log:
        log.write(b'{"step": 5, "lo')
    go(work, "--out=two", "--max_steps=4", *way)
    one, two = (read_checkpoint(work / name) for name in ("one", "two"))
    assert one["step"] == two["step"] and same(one["model"], two["model"])
    moments = zip(*(x["optimizer"]["state"].values() for x in (one, two)), strict=True)
    assert all(same(x, y) for x, y in moments)
    logs = [[(line["step"], line["loss"]) for line in read_log(work / x)] for x in ("one", "two")]
    assert logs[0] == logs[1]
    if "--parallel=fsdp" in way:
        torch.distributed.destroy_process_group()


def test_a_change_of_settings_is_refused_by_name(work):
    """Catches a run that goes on as another one, and a refusal that does not name the setting."""
    go(work, "--out=q", "--max_steps=1")
    before = read_checkpoint(work / "q")
    shutil.copytree(work / "base", work / "other")
    for flag in ("--lr=0.5", "--thought_len=3", "--seed=7", "--init_from=other"):
        message = refusal(work, "--out=q", "--max_steps=2", flag)
        assert flag[2:].partition("=")[0] in message and str(work / "q") in message
    ids = np.random.default_rng(1).integers(0, 6, 600)
    splits = {"train": ids, "val": ids[:100]}
    write_dataset(work / "data", splits, CharTokenizer("abcde\n"), document_end=5)
    assert "checksum of its text" in refusal(work, "--out=q", "--max_steps=2")
    assert same(before["model"], read_checkpoint(work / "q")["model"])


def test_settings_that_do_not_change_the_training_may_change(work):
    """Catches a refusal of more steps, other micro-batches or rarer checkpoints, or of the same
    text elsewhere."""
    go(work, "--out=q", "--max_steps=1")
    shutil.move(work / "data", work / "moved")
    how = ["--max_steps=2", "--micro_batch=2", "--save_every=9", "--eval_every=7"]
    go(work, "--out=q", "--data=moved", *how)
    config = read_config(work / "q")["train"]
    assert config["micro_batch"] == 2 and config["data"] == str(work / "moved")


def test_a_folder_has_one_name_however_it_is_written(work, monkeypatch):
    """Catches a folder called ~, and another run for another way to write the same path."""
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(work))
    for n, base in enumerate(["base", "base/", ".//base", "~/base", str(work / "base")], 1):
        line = [*flags(work, "--out=q", f"--max_steps={n}"), "--out=~/q", f"--init_from={base}"]
        trainer.run(*trainer.settings_from([*line, "--data=~/data/"]))
    config = read_config("q")["train"]
    assert [config[name] for name in ("out", "init_from", "data")] == ["q", "base", "data"]
    assert read_checkpoint("q")["step"] == 5 and not Path("~").exists()


def test_a_folder_of_something_else_is_no_run_and_no_place_for_one(work):
    """Catches training into a folder of weights, which would be loaded in its place, into a
    dataset, or on from checkpoints whose settings are lost. And a traceback where one is loaded, or
    a message about a file that the user did not name."""
    go(work, "--out=q", "--max_steps=1")
    export(work / "q", work / "weights")
    shutil.copytree(work / "q", work / "lost")
    (work / "lost" / "config.json").unlink()
    shutil.copytree(work / "q", work / "both")
    shutil.copy(work / "weights" / "params.json", work / "both")
    for name in ("weights", "data", "lost", "both"):
        before = sorted((work / name).iterdir())
        assert str(work / name) in refusal(work, f"--out={name}", "--max_steps=2")
        assert sorted((work / name).iterdir()) == before
    (work / "empty").mkdir()
    for name in ("lost", "both", "data", "empty", "absent"):
        with pytest.raises(ValueError, match=str(work / name)) as error:
            load_model(work / name)
        assert "\n" not in str(error.value)


def test_a_thinking_run_is_begun_from_one_of_another_kind(work):
    """Catches a head of another size, or start and end of thought, that are looked for in vain."""
    length = ["--thought_kind=any_length", "--gain_head", "--max_steps=1"]
    go(work, "--out=of3", "--thought_len=3", *length)
    go(work, "--out=of2", "--thought_len=2", "--init_from=of3", *length)
    go(work, "--out=sampled", "--init_from=of3", "--gain_head", "--max_steps=1")
    go(work, "--out=again", "--thought_len=3", "--init_from=sampled", *length)
    go(work, "--out=empty", "--start_text=", "--max_steps=1")
    assert load_run(work / "of2")[0].gain_head.last.out_features == 3


def test_a_hostile_environment_changes_nothing(work):
    """Catches another package called as one of ours, a system that does not tell what memory a
    process took, a home that is not known to argparse, and output that nobody reads."""
    for name in ("data", "lib", "studies", "beyond", "resource"):
        (work / "hostile" / name).mkdir(parents=True)
        (work / "hostile" / name / "__init__.py").write_text("raise ImportError('not ours')")
    environment = {**os.environ, "PYTHONPATH": str(work / "hostile"), "HOME": str(work)}
    for out in ("stdout", "both"):
        line = [*flags(work, "--max_steps=2"), f"--out=~/{out}"]
        close = '"$0" "$@" >&-' + " 2>&-" * (out == "both")
        command = ["sh", "-c", close, sys.executable, str(ROOT / "train.py"), *line]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        log = read_log(work / out)
        assert len(log) == 2 and "peak_memory_gb" not in log[0]
        assert read_checkpoint(work / out)["step"] == 2


def test_a_run_of_an_older_version_is_one_line_that_names_the_commit_that_reads_it(work):
    """Catches an old run that is read with today's meaning of its settings, or trained on."""
    go(work, "--out=q", "--max_steps=1")
    config = json.loads((work / "q" / "config.json").read_text())
    del config["format"]
    (work / "q" / "config.json").write_text(json.dumps(config))
    assert "5897d14" in refusal(work, "--out=q", "--max_steps=2")
    with pytest.raises(ValueError, match="q/config.json.*5897d14") as error:
        load_model(work / "q")
    assert "\n" not in str(error.value)


MISFITS = [("model", "dim", 8), ("model", "dim", "16"), ("train", "lora_rank", "x")]


@pytest.mark.parametrize("section, name, value", [*MISFITS, ("quiet_star", "no_such", 1)])
def test_a_config_that_does_not_fit_is_one_line_that_names_it(work, section, name, value):
    """Catches a traceback for a config.json that was edited, or is of another model."""
    go(work, "--out=q", "--max_steps=1")
    config = json.loads((work / "q" / "config.json").read_text())
    config[section][name] = value
    (work / "q" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="config.json") as error:
        load_run(work / "q")
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_never_saved(work):
    """Catches a last good checkpoint that is replaced by one of infinite weights: a step of 1e38
    leaves the loss of that step finite."""
    huge = ["--lr=3e38", "--warmup_steps=0", "--max_steps=1", "--weight_decay=9"]
    assert "step 1 " in refusal(work, "--out=q", *huge)
    assert not checkpoints(work / "q")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_ends_training_after_a_step_that_is_saved(work, number):
    """Catches a stop that loses the steps since the last checkpoint."""
    settings = flags(work, "--out=q", "--max_steps=100000", "--save_every=100000")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *settings]
    how = {"cwd": ROOT, "env": environment, "stdout": subprocess.DEVNULL}
    before = signal.signal(number, signal.SIG_DFL)  # it may be ignored here, and would be there
    process = subprocess.Popen(command, **how)
    signal.signal(number, before)
    while process.poll() is None and len(read_log(work / "q")) < 3:
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) == 130
    assert read_checkpoint(work / "q")["step"] == read_log(work / "q")[-1]["step"] >= 3


def test_the_log_survives_what_is_not_a_number_and_a_line_that_was_cut(tmp_path):
    """Catches a metric that is not finite and cuts the log there, and one that is rounded to 0."""
    lines = [
        {"step": n, "seconds": 0.5, "lr": 1.23456e-6, "x": x} for n, x in enumerate([1, 1e999])
    ]
    cut = log_line(lines[0])[:-5]
    (tmp_path / "log.jsonl").write_bytes(b"".join([*map(log_line, lines), cut]))
    assert read_log(tmp_path) == [lines[0], {**lines[1], "x": None}]
    assert read_log(tmp_path / "absent") == []


def test_the_last_run_is_the_thinking_one_that_was_saved_last(work, monkeypatch):
    """Catches an order by name or of creation, and a base model in place of a thinking one."""
    monkeypatch.chdir(work)
    with pytest.raises(ValueError, match="out/"):
        last_run()
    for n, out in enumerate(("b", "a", "c")):
        go(work, f"--out=out/{out}", "--max_steps=1", *["--objective=lm"] * (out == "c"))
        os.utime(checkpoints(work / "out" / out)[0], (n, n))
    assert str(last_run()) == "out/a"
    os.utime(checkpoints(work / "out" / "b")[0], (9, 9))
    assert str(last_run()) == "out/b"
    shutil.move("out/a", "elsewhere")
    os.utime(checkpoints(work / "elsewhere")[0])
    Path("out/link").symlink_to("../elsewhere")
    assert str(last_run()) == "out/link"

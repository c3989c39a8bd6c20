"""Training: the same for every split of a batch, every number of processes and every interruption; clear refusals."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_runs import ROOT, SHAPE, agree, flags, go, refusal, same

import train as trainer
from data.dataset import write_dataset
from lib.checkpoint import checkpoints, read_checkpoint
from lib.runs import load_run, read_log
from lib.tokenizer import CharTokenizer


@pytest.mark.parametrize("how", [["--fast"], ["--fast", "--think_at_once=5"]])
def test_thinking_fast_is_the_same_training(work, how):
    go(work, "--out=whole", "--max_steps=3", "--dtype=float32")
    trainer.run(*trainer.settings_from([*flags(work, "--out=parts", "--max_steps=3"), *how]))
    for name, wanted in read_checkpoint(work / "whole")["model"].items():
        torch.testing.assert_close(
            read_checkpoint(work / "parts")["model"][name], wanted, atol=2e-5, rtol=1e-3
        )


@pytest.mark.parametrize("where", ["hard", "random"])
def test_thinking_at_a_share_of_positions_is_the_same_training_for_every_split(work, where):
    settings = [
        "--max_steps=3",
        f"--think_at={where}",
        "--think_share=0.5",
        "--reward_on=thought",
        "--mixing_head_lr=50",
    ]
    go(work, "--out=whole", "--fast", *settings)
    go(work, "--out=parts", "--micro_batch=1", "--fast", "--think_at_once=4", *settings)
    agree(work / "whole", work / "parts")
    go(work, "--out=all", "--max_steps=3", "--think_at=all", "--think_share=0.5", *settings[3:])
    one, other = (read_log(work / name)[0] for name in ("whole", "all"))
    assert one["nll_base"] == other["nll_base"] and one["reward"] != other["reward"]


def test_a_run_leaves_a_model_a_log_and_its_settings(work):
    go(work, "--out=q", "--max_steps=3", "--eval_every=2")
    model, tokenizer, config, step = load_run(work / "q")
    assert step == 3 and tokenizer.decode([0]) == "a" and config["train"]["max_steps"] == 3
    log = read_log(work / "q")
    assert [line["step"] for line in log] == [1, 2, 3]
    assert {"loss", "nll_base", "nll_mixed", "gate", "reward", "advantage_abs", "grad_norm"} <= log[
        0
    ].keys()
    assert "val_nll_mixed" in log[1] and "val_nll_mixed" in log[2] and "val_nll_mixed" not in log[0]
    assert log[0]["gate"] == 0, "at step 0 the model is the base model"
    assert not list((work / "q").glob("*.tmp"))


def test_training_learns(work):
    """A corpus of one repeated word must be learned by heart, in either objective."""
    ids = np.tile([0, 1, 2, 3, 4], 100)
    write_dataset(work / "word", {"train": ids, "val": ids[:50]}, CharTokenizer("abcde\n"))
    go(
        work,
        "--objective=lm",
        "--data=word",
        "--init_from=",
        "--out=w",
        "--max_steps=60",
        "--lr=1e-2",
        *SHAPE,
    )
    log = read_log(work / "w")
    assert log[0]["loss"] > 1.5 and log[-1]["loss"] < 0.1 and log[-1]["val_nll_base"] < 0.1
    go(work, "--data=word", "--init_from=w", "--out=wq", "--max_steps=5", "--thought_len=2")
    assert read_log(work / "wq")[-1]["val_nll_mixed"] < 0.1


@pytest.mark.parametrize("objective", ["lm", "quiet_star"])
def test_resuming_after_ctrl_c_gives_bit_for_bit_the_run_that_was_never_stopped(
    work, objective, monkeypatch
):
    go(work, "--out=whole", f"--objective={objective}", "--max_steps=5")
    original = trainer.batch_offsets

    def interrupt(dataset, length, count, seed, step):
        if step == 2 and seed:
            os.kill(os.getpid(), signal.SIGINT)
        return original(dataset, length, count, seed, step)

    monkeypatch.setattr(trainer, "batch_offsets", interrupt)
    with pytest.raises(SystemExit) as stop:
        go(work, "--out=parts", f"--objective={objective}", "--max_steps=5")
    assert stop.value.code == 130 and read_checkpoint(work / "parts")["step"] == 3
    monkeypatch.setattr(trainer, "batch_offsets", original)
    go(work, "--out=parts", f"--objective={objective}", "--max_steps=5")
    whole, parts = read_checkpoint(work / "whole"), read_checkpoint(work / "parts")
    assert same(whole["model"], parts["model"])
    loss = [[line["loss"] for line in read_log(work / name)] for name in ("whole", "parts")]
    assert loss[0] == loss[1] and len(loss[0]) == 5


def test_resuming_after_a_kill_does_the_lost_steps_anew(work):
    """A killed run has logged steps that no checkpoint holds."""
    go(work, "--out=whole", "--max_steps=4", "--save_every=2")
    go(work, "--out=killed", "--max_steps=2", "--save_every=2", "--min_lr_share=1")
    with open(work / "killed" / "log.jsonl", "a") as log:
        log.write(json.dumps({"step": 3, "loss": 99.0}) + '\n{"step": 4, "lo')
    go(work, "--out=killed", "--max_steps=4", "--save_every=2", "--min_lr_share=1")
    assert [line["step"] for line in read_log(work / "killed")] == [1, 2, 3, 4]
    assert 99.0 not in [line["loss"] for line in read_log(work / "killed")]


def test_every_split_into_micro_batches_gives_the_same_gradient(work):
    """With documents of unequal length masked, a mean of means would weigh texts differently."""
    for micro in (4, 2, 1):
        go(work, f"--out=m{micro}", f"--micro_batch={micro}", "--max_steps=1", "--thought_len=3")
    agree(work / "m4", work / "m2")
    agree(work / "m4", work / "m1")


def test_separate_documents_changes_the_loss_and_splits_alike(work):
    settings = trainer.settings_from(
        [*flags(work, "--out=d4", "--max_steps=1"), "--separate_documents"]
    )
    trainer.run(*settings)
    trainer.run(
        *trainer.settings_from(
            [*flags(work, "--out=d1", "--max_steps=1", "--micro_batch=1"), "--separate_documents"]
        )
    )
    go(work, "--out=n4", "--max_steps=1")
    agree(work / "d4", work / "d1")
    assert read_log(work / "d4")[0]["nll_base"] != read_log(work / "n4")[0]["nll_base"]


@pytest.mark.parametrize("objective", ["quiet_star", "lm"])
def test_two_processes_under_torchrun_equal_one(work, objective):
    """Gradients that are summed instead of averaged, or ranks that read the same texts, show here."""
    go(work, "--out=one", "--max_steps=1", f"--objective={objective}")
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_port=0",
        "--standalone",
    ]
    command = [
        *launch,
        "train.py",
        *flags(work, "--out=two", "--max_steps=1", f"--objective={objective}"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "on 2 x cpu" in done.stdout + done.stderr
    agree(work / "one", work / "two")


def test_a_missing_base_model_is_trained_first_by_its_preset(work, tmp_path):
    preset = tmp_path / "base.toml"
    base = dict(
        objective="lm",
        out=str(work / "made"),
        data=str(work / "data"),
        init_from="",
        base_preset="",
        span=12,
    )
    base |= dict(
        batch_size=4,
        max_steps=2,
        eval_texts=2,
        dim=16,
        n_layers=1,
        head_dim=8,
        hidden_dim=24,
        n_heads=2,
        n_kv_heads=1,
    )
    preset.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in base.items()))
    go(work, "--out=q", "--init_from=made", "--max_steps=1", f"--base_preset={preset}")
    assert read_checkpoint(work / "made")["step"] == 2 and read_checkpoint(work / "q")["step"] == 1


def test_language_modelling_goes_on_from_a_thinking_run_without_what_it_thought_with(work):
    go(work, "--out=q", "--max_steps=2", "--thought_len=2")
    go(work, "--objective=lm", "--init_from=q", "--out=lm", "--max_steps=1", "--lr=0")
    thinking, plain = (read_checkpoint(work / name)["model"] for name in ("q", "lm"))
    assert same(
        plain, {k.removeprefix("model."): v for k, v in thinking.items() if k.startswith("model.")}
    )
    go(work, "--init_from=q", "--out=q2", "--max_steps=1", "--lr=0", "--thought_len=1")
    for name, weight in read_checkpoint(work / "q2")[
        "model"
    ].items():  # with its heads and thought tokens
        torch.testing.assert_close(weight, thinking[name], msg=name)


def test_bad_flags_are_one_line_on_stderr_and_exit_status_2(work, capsys):
    for flag, expected in [
        ("--foo=1", "unrecognized arguments: --foo=1"),
        ("--lr=fast", "invalid float value: 'fast'"),
        ("--thought_len=-1", "thought_len"),
        ("--n_thoughts=0", "n_thoughts"),
        ("--objective=sft", "objective must be one of"),
        ("--batch_size=0", "batch_size must be at least 1"),
        ("--n_heads=3", "n_heads"),
    ]:
        with pytest.raises(SystemExit) as stop:
            trainer.settings_from([flag, "--n_kv_heads=2"])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and expected in error and error.count("\n") == 1, error


def test_every_preset_is_read():
    presets = sorted((ROOT / "config").glob("*.toml"))
    assert len(presets) >= 4
    for preset in presets:
        train, *_ = trainer.settings_from([f"--config={preset}"])
        assert train.out != trainer.TrainConfig.out, "a preset has a folder of its own"


def test_bad_input_is_refused_in_one_line_before_any_work(work):
    (work / "file").write_text("")
    write_dataset(work / "other", {"train": [0] * 90, "val": [0] * 90}, CharTokenizer("xyz"))
    assert "no data in" in refusal(work, "--out=q", "--data=nowhere")
    assert "tokenizer" in refusal(work, "--out=q", "--data=other")
    assert "val.bin" in refusal(work, "--out=q", "--span=100")
    assert "--dim=32" in refusal(work, "--out=q", "--dim=32")
    assert "there is no " in refusal(work, "--out=q", "--init_from=nowhere")
    assert "micro_batch 3 does not divide" in refusal(work, "--out=q", "--micro_batch=3")
    assert "Not a directory" in refusal(work, "--out=file/q")
    assert not (work / "q").exists()


def test_damaged_data_and_checkpoints_are_refused(work):
    go(work, "--out=q", "--max_steps=1")
    assert "lr=" in refusal(work, "--out=q", "--lr=1", "--max_steps=2")
    checkpoint = checkpoints(work / "q")[0]
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    assert "damaged or cut short" in refusal(work, "--out=q", "--max_steps=2")
    config = json.loads((work / "base" / "config.json").read_text())
    config["model"]["hidden_dim"] = 32
    (work / "base" / "config.json").write_text(json.dumps(config))
    assert "layers.0.feed_forward.w1.weight" in refusal(work, "--out=p")
    (work / "data" / "train.bin").write_bytes(b"\0\0")
    assert "cut short" in refusal(work, "--out=p")


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_last_good_checkpoint(work):
    message = refusal(
        work, "--out=q", "--lr=1e30", "--warmup_steps=0", "--save_every=1", "--max_steps=9"
    )
    assert "the loss is nan at step 1" in message and str(checkpoints(work / "q")[0]) in message
    assert read_checkpoint(work / "q")["step"] == 1


def test_help_lists_every_setting_with_its_comment():
    done = subprocess.run(
        [sys.executable, "train.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr
    words = " ".join(done.stdout.split())
    for cls in (trainer.TrainConfig, trainer.ModelConfig, trainer.ThinkingConfig):
        for field in dataclasses.fields(cls):
            said = words.split(f" --{field.name} ")[-1].split(" --")[0]
            flag = f"--{field.name}"
            assert flag in words and f"(default: {field.default})" in words, flag
            assert cls.__name__ in words and (
                field.type is bool or len(said.split("(default")[0].split()) > 1
            ), flag


def test_the_script_itself_exits_non_zero_with_one_line(work):
    done = subprocess.run(
        [sys.executable, "train.py", "--foo"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
    done = subprocess.run(
        [sys.executable, "train.py", *flags(work, "--data=nowhere")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr

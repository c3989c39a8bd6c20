"""Training: the same for every split of a batch and every interruption; clear refusals."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny_runs import ROOT, SHAPE, agree, flags, go, losses, refusal, same
from torch.testing import assert_close

import train as trainer
from data.dataset import write_dataset
from lib.checkpoint import checkpoints, read_checkpoint
from lib.runs import load_run, read_log
from lib.tokenizer import CharTokenizer


def weights(*folders):
    return [read_checkpoint(folder)["model"] for folder in folders]


@pytest.mark.parametrize("where", ["hard", "random"])
def test_fast_and_in_any_parts_it_is_the_same_training(work, where):
    """Catches a fast form that trains otherwise, positions that depend on how a batch is split, and
    a share of positions that is not obeyed."""
    settings = "--max_steps=3 --think_share=0.5 --reward_on=thought --mixing_head_lr=5e-3".split()
    at = f"--think_at={where}"
    go(work, "--out=obvious", at, *settings)
    for name, how in {"fast": [], "parts": ["--micro_batch=1", "--think_at_once=4"]}.items():
        go(work, f"--out={name}", "--fast", at, *how, *settings)
        agree(work / "obvious", work / name)
    go(work, "--out=all", "--think_at=all", *settings)
    one, other = (read_log(work / name)[0] for name in ("obvious", "all"))
    assert one["nll_base"] == other["nll_base"] and one["reward"] != other["reward"]


def test_a_run_leaves_a_model_a_log_and_its_settings(work):
    """Catches a lost line, metric or evaluation, and a model that thinks otherwise at step 0."""
    go(work, "--out=q", "--max_steps=3", "--eval_every=2")
    _, tokenizer, config, step = load_run(work / "q")
    assert step == 3 and tokenizer.decode([0]) == "a" and config["train"]["max_steps"] == 3
    log = read_log(work / "q")
    assert [line["step"] for line in log] == [1, 2, 3]
    logged = {"loss", "nll_base", "nll_mixed", "gate", "reward", "advantage_abs", "grad_norm"}
    assert logged <= log[0].keys()
    assert ["val_nll_mixed" in line for line in log] == [False, True, True]
    assert log[0]["gate"] == 0, "at step 0 the model is the base model"
    assert not list((work / "q").glob("*.tmp"))


def test_training_learns(work):
    """Catches anything that keeps a corpus of one repeated word from being learned by heart, in
    either objective."""
    word = np.tile([0, 1, 2, 3, 4], 100)
    write_dataset(work / "word", {"train": word, "val": word[:50]}, CharTokenizer("abcde\n"))
    go(work, "--objective=lm", "--data=word", "--init_from=", "--out=w", "--max_steps=60",
       "--lr=1e-2", *SHAPE)  # fmt: skip
    log = read_log(work / "w")
    assert log[0]["loss"] > 1.5 and log[-1]["loss"] < 0.1 and log[-1]["val_nll_base"] < 0.1
    go(work, "--data=word", "--init_from=w", "--out=wq", "--max_steps=5", "--thought_len=2")
    assert read_log(work / "wq")[-1]["val_nll_mixed"] < 0.1


@pytest.mark.parametrize("objective", ["lm", "quiet_star"])
def test_a_run_goes_on_after_ctrl_c_as_if_it_had_not_been_stopped(work, objective, monkeypatch):
    """Catches a step that is lost or done twice. (What a kill loses: tests/lib/test_runs.py.)"""
    settings, draw = [f"--objective={objective}", "--max_steps=5"], trainer.batch_offsets
    go(work, "--out=one", *settings)

    def interrupt(dataset, length, count, seed, step):
        if step == 2 and seed:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(dataset, length, count, seed, step)

    with monkeypatch.context() as patched, pytest.raises(SystemExit) as stop:
        patched.setattr(trainer, "batch_offsets", interrupt)
        go(work, "--out=two", *settings)
    assert stop.value.code == 130 and read_checkpoint(work / "two")["step"] == 3
    go(work, "--out=two", *settings)
    assert same(*weights(work / "one", work / "two"))
    one, two = losses(work, "one", "two")
    assert one == two and len(one) == 5


@pytest.mark.parametrize("documents", [[], ["--separate_documents"]])
def test_every_split_into_micro_batches_gives_the_same_gradient(work, documents):
    """Catches a mean of means, which weighs texts of masked documents differently."""
    settings = ["--max_steps=1", "--thought_len=3", *documents]
    for micro in (4, 2, 1):
        go(work, f"--out=m{micro}", f"--micro_batch={micro}", *settings)
    agree(work / "m4", work / "m2")
    agree(work / "m4", work / "m1")
    if documents:
        go(work, "--out=together", *settings[:2])
        one, other = (read_log(work / name)[0]["nll_base"] for name in ("m4", "together"))
        assert one != other, "separate documents change the loss"


def test_a_missing_base_model_is_trained_first_by_its_preset(work):
    """Catches a base model that is not made, or not by the preset that is named."""
    preset, base = work / "base.toml", ["--objective=lm", "--out=made", "--max_steps=2"]
    line = [*flags(work, *base), "--init_from="]
    given = dict(flag.removeprefix("--").split("=") for flag in line if not flag == "--device=cpu")
    values = {k: int(v) if v.isdigit() else v for k, v in given.items()}
    lines = "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items())
    preset.write_text(lines + (ROOT / "tests" / "tiny.toml").read_text())
    go(work, "--out=q", "--init_from=made", "--max_steps=1", f"--base_preset={preset}")
    assert read_checkpoint(work / "made")["step"] == 2 and read_checkpoint(work / "q")["step"] == 1


@pytest.mark.parametrize("parallel", ["data", "fsdp"])
def test_at_a_learning_rate_of_0_the_heads_learn_and_the_model_stays_bit_for_bit(work, parallel):
    """Catches weight decay, or a gradient, that reaches a model which is held fixed."""
    how = ["--lr=0", "--fast", f"--parallel={parallel}", "--max_steps=3", "--warmup_steps=0"]
    go(work, "--out=fixed", "--think_at_once=4", *how)
    go(work, "--out=on", *how[:-2], "--init_from=fixed", "--max_steps=1", "--mixing_head_lr=0")
    before, fixed, again = weights(work / "base", work / "fixed", work / "on")
    for name, weight in before.items():
        assert torch.equal(fixed[f"model.{name}"], weight), name
    heads = {name for name in fixed if name.startswith("mixing_head.")}
    new = fixed["mixing_head.last.weight"]
    assert new.abs().max() > 0 and same(again, fixed) and len(heads) == 6


def test_language_modelling_goes_on_from_a_thinking_run_without_what_it_thought_with(work):
    """Catches weights that are lost, or new, on the way from one run to another."""
    go(work, "--out=q", "--max_steps=2", "--thought_len=2")
    go(work, "--objective=lm", "--init_from=q", "--out=lm", "--max_steps=1", "--lr=0")
    go(work, "--init_from=q", "--out=q2", "--max_steps=1", "--lr=0", "--mixing_head_lr=0")
    thinking, plain, again = weights(work / "q", work / "lm", work / "q2")
    model = {k.removeprefix("model."): v for k, v in thinking.items() if k.startswith("model.")}
    assert same(plain, model)
    for name, weight in again.items():  # with its heads and thought tokens
        assert_close(weight, thinking[name], msg=name)


BAD_FLAGS = ["--foo=1", "--lr=fast", "--thought_len=-1", "--n_thoughts=0", "--objective=sft"]
SHARDED = "--lora_rank=2 --parallel=fsdp"


@pytest.mark.parametrize("flag", [*BAD_FLAGS, "--batch_size=0", "--dim=8", SHARDED])
def test_bad_flags_are_one_line_on_stderr_and_exit_status_2(flag, capsys):
    """Catches a class of settings whose checks are not asked before anything is made."""
    with pytest.raises(SystemExit) as stop:
        trainer.settings_from(flag.split())
    error, name = capsys.readouterr().err, flag[2:].split("=")[0]
    assert stop.value.code == 2 and name in error and error.count("\n") == 1, error


def test_every_preset_is_read():
    """Catches a preset that no longer fits the settings, or that has no folder of its own."""
    presets = sorted((ROOT / "config").glob("*.toml"))
    assert len(presets) >= 4
    for preset in presets:
        train, *_ = trainer.settings_from([f"--config={preset}"])
        shape_alone = preset.name == "arithmetic_long_base.toml"
        assert shape_alone or train.out != trainer.TrainConfig.out, preset


def test_bad_input_is_refused_in_one_line_before_any_work(work):
    """Catches a run folder that is made for nothing, and a refusal that does not name the cause."""
    (work / "file").write_text("")
    (work / "wide.toml").write_text("dim = 32")
    write_dataset(work / "other", {"train": [0] * 90, "val": [0] * 90}, CharTokenizer("xyz"))
    for flag, named in {
        "--data=nowhere": "nowhere",
        "--data=other": "tokenizer",
        "--span=100": "span",
        f"--config={work / 'wide.toml'}": "dim=32",
        "--init_from=nowhere": "nowhere",
        "--micro_batch=3": "micro_batch 3",
        "--out=file/q": "file/q",
        "--think_at=aloud --start_text=bc": "start_text",
    }.items():
        assert named in refusal(work, "--out=q", *flag.split()), flag
    assert not (work / "q").exists()


def test_damaged_data_and_checkpoints_are_refused(work):
    """Catches a run that starts anew over, or from, what is damaged."""
    go(work, "--out=q", "--max_steps=1")
    assert "lr=" in refusal(work, "--out=q", "--lr=1", "--max_steps=2")
    checkpoint, base = checkpoints(work / "q")[0], work / "base" / "config.json"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    assert str(work / "q") in refusal(work, "--out=q", "--max_steps=2")
    config = json.loads(base.read_text())
    config["model"]["hidden_dim"] = 32
    base.write_text(json.dumps(config))
    assert "layers.0.feed_forward.w1.weight" in refusal(work, "--out=p")
    (work / "data" / "train.bin").write_bytes(b"\0\0")
    assert "train.bin" in refusal(work, "--out=p")


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_last_good_checkpoint(work):
    """Catches a checkpoint of a model that is lost."""
    how = "--lr=1e30", "--warmup_steps=0", "--save_every=1", "--max_steps=9"
    message = refusal(work, "--out=q", *how)
    assert "step 2" in message and "nan" in message and str(checkpoints(work / "q")[0]) in message
    assert read_checkpoint(work / "q")["step"] == 1


def test_a_run_without_a_checkpoint_may_go_on_with_other_settings(work):
    """Catches advice, such as a lower rate, that cannot be taken in the same folder."""
    assert "none yet" in refusal(work, "--out=q", "--lr=1e30", "--warmup_steps=0", "--max_steps=9")
    go(work, "--out=q", "--max_steps=1")
    assert len(read_log(work / "q")) == 1


def test_a_look_at_held_out_text_that_dies_costs_no_step(work, monkeypatch):
    """Catches a look before the save: all steps since the last save are lost, at each try again."""
    how = "--max_steps=4", "--save_every=100", "--eval_every=100"
    go(work, "--out=well", *how)

    def dies(*_):
        raise OSError("no memory map")

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "evaluate", dies)
        assert "no memory map" in refusal(work, "--out=died", *how)
    assert read_checkpoint(work / "died")["step"] == 4
    monkeypatch.setattr(trainer, "one_step", dies)  # no step is taken again
    go(work, "--out=died", *how)
    last = [read_log(work / name)[-1] for name in ("well", "died")]
    for name in ("step", "loss", "grad_norm", "val_nll_base", "val_nll_mixed"):
        assert last[0][name] == last[1][name], name


def test_help_lists_every_setting_with_its_comment(capsys):
    """Catches a setting without a comment, or a class of settings that is not listed."""
    with pytest.raises(SystemExit):
        trainer.settings_from(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    shown = 0
    for cls in (trainer.TrainConfig, trainer.ThinkingConfig):
        assert cls.__name__ in words
        for field in dataclasses.fields(cls):
            if field.name == "end_id":  # that of end_text
                assert "end_id" not in words
                continue
            shown += 1
            name = f"--{field.name}"
            text = words.split(f" {name} ")[-1].split(" --")[0].split("(default")[0]
            assert name in words and f"(default: {field.default})" in words, name
            assert field.type is bool or len(text.split()) > 1, name
    assert shown <= 45


@pytest.mark.parametrize("flag, status", [("--foo=1", 2), ("--data=nowhere", 1)])
def test_the_script_itself_exits_non_zero_with_one_line(work, flag, status):
    """Catches a traceback, and a mistake that a shell takes for success."""
    command = [sys.executable, "train.py", *flags(work, flag)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status and done.stderr.count("\n") == 1 and not done.stdout

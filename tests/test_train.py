"""Training: the same for every split of a batch, every number of processes and every interruption; clear refusals."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import train as trainer
from checkpoint import checkpoints, load_checkpoint, load_run, read_log, save_checkpoint
from data.dataset import write_dataset
from data.tokenizer import CharTokenizer

ROOT = Path(__file__).resolve().parents[1]
SHAPE = "--dim=16 --n_layers=1 --head_dim=8 --hidden_dim=24 --n_heads=2 --n_kv_heads=1".split()
COMMON = "--span=12 --batch_size=4 --eval_texts=2 --device=cpu --start_text=b --base_preset=".split()


@pytest.fixture
def work(tmp_path):
    """A folder with a tiny corpus, `data`, and a tiny base model, `base`."""
    ids = np.random.default_rng(0).integers(0, 6, 600)
    write_dataset(tmp_path / "data", {"train": ids, "val": ids[:100]}, CharTokenizer("abcde\n"), document_end=5)
    go(tmp_path, "--objective=lm", "--out=base", "--init_from=", "--max_steps=3", *SHAPE)
    return tmp_path


def flags(work, *more):
    paths = [f"--{k}={work / v}" for k, v in (("data", "data"), ("init_from", "base"))]
    more = [
        f"{name}={work / value}" if value and name in ("--out", "--init_from", "--data") else f"{name}{is_}{value}"
        for name, is_, value in (flag.partition("=") for flag in more)
    ]
    return [*COMMON, *paths, *more]


def go(work, *more):
    """Train in this process."""
    trainer.run(*trainer.settings_from(flags(work, *more)))


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("how", [["--think_at_once=5"], ["--think_at_once=2", "--recompute"]])
def test_thinking_in_parts_is_the_same_training(work, how):
    go(work, "--out=whole", "--max_steps=3", "--dtype=float32")
    trainer.run(*trainer.settings_from([*flags(work, "--out=parts", "--max_steps=3"), *how]))
    for name, wanted in load_checkpoint(work / "whole")["model"].items():
        torch.testing.assert_close(load_checkpoint(work / "parts")["model"][name], wanted, atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("where", ["hard", "hardest", "random"])
def test_thinking_at_a_share_of_positions_is_the_same_training_for_every_split(work, where):
    settings = [
        "--max_steps=3",
        f"--think_at={where}",
        "--think_share=0.5",
        "--reward_on=thought",
        "--mixing_head_lr=50",
    ]
    go(work, "--out=whole", *settings)
    go(work, "--out=parts", "--micro_batch=1", "--think_at_once=4", *settings)
    agree(work / "whole", work / "parts")
    go(work, "--out=all", "--max_steps=3", "--think_share=0.5", *settings[3:])
    one, other = (read_log(work / name)[0] for name in ("whole", "all"))
    assert one["nll_base"] == other["nll_base"] and one["reward"] != other["reward"]


def test_a_run_leaves_a_model_a_log_and_its_settings(work):
    go(work, "--out=q", "--max_steps=3", "--eval_every=2")
    model, tokenizer, config, step = load_run(work / "q")
    assert step == 3 and tokenizer.decode([0]) == "a" and config["train"]["max_steps"] == 3
    log = read_log(work / "q")
    assert [line["step"] for line in log] == [1, 2, 3]
    assert {"loss", "nll_base", "nll_mixed", "gate", "reward", "advantage_abs", "grad_norm"} <= log[0].keys()
    assert "val_nll_mixed" in log[1] and "val_nll_mixed" in log[2] and "val_nll_mixed" not in log[0]
    assert log[0]["gate"] == 0, "at step 0 the model is the base model"
    assert not list((work / "q").glob("*.tmp"))


def test_training_learns(work):
    """A corpus of one repeated word must be learned by heart, in either objective."""
    ids = np.tile([0, 1, 2, 3, 4], 100)
    write_dataset(work / "word", {"train": ids, "val": ids[:50]}, CharTokenizer("abcde\n"))
    go(work, "--objective=lm", "--data=word", "--init_from=", "--out=w", "--max_steps=60", "--lr=1e-2", *SHAPE)
    log = read_log(work / "w")
    assert log[0]["loss"] > 1.5 and log[-1]["loss"] < 0.1 and log[-1]["val_nll_base"] < 0.1
    go(work, "--data=word", "--init_from=w", "--out=wq", "--max_steps=5", "--thought_len=2")
    assert read_log(work / "wq")[-1]["val_nll_mixed"] < 0.1


@pytest.mark.parametrize("objective", ["lm", "quiet_star"])
def test_resuming_after_ctrl_c_gives_bit_for_bit_the_run_that_was_never_stopped(work, objective, monkeypatch):
    go(work, "--out=whole", f"--objective={objective}", "--max_steps=5")
    original = trainer.batch_offsets

    def interrupt(dataset, length, count, seed, step):
        if step == 2 and seed:
            os.kill(os.getpid(), signal.SIGINT)
        return original(dataset, length, count, seed, step)

    monkeypatch.setattr(trainer, "batch_offsets", interrupt)
    with pytest.raises(SystemExit) as stop:
        go(work, "--out=parts", f"--objective={objective}", "--max_steps=5")
    assert stop.value.code == 130 and load_checkpoint(work / "parts")["step"] == 3
    monkeypatch.setattr(trainer, "batch_offsets", original)
    go(work, "--out=parts", f"--objective={objective}", "--max_steps=5")
    whole, parts = load_checkpoint(work / "whole"), load_checkpoint(work / "parts")
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


def first_moments(folder):
    """Adam's first moments: after one step, a tenth of the gradient."""
    return [state["exp_avg"] for state in load_checkpoint(folder)["optimizer"]["state"].values()]


def agree(one, other):
    a, b = read_log(one), read_log(other)
    assert len(a) == len(b) > 0
    for x, y in zip(a, b, strict=True):
        for name in ("loss", "nll_base", "reward", "grad_norm"):
            if name in x:
                assert x[name] == pytest.approx(y[name], abs=3e-5), name
    for x, y in zip(first_moments(one), first_moments(other), strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-4)


def test_every_split_into_micro_batches_gives_the_same_gradient(work):
    """With documents of unequal length masked, a mean of means would weigh texts differently."""
    for micro in (4, 2, 1):
        go(work, f"--out=m{micro}", f"--micro_batch={micro}", "--max_steps=1", "--thought_len=3")
    agree(work / "m4", work / "m2")
    agree(work / "m4", work / "m1")


def test_separate_documents_changes_the_loss_and_splits_alike(work):
    settings = trainer.settings_from([*flags(work, "--out=d4", "--max_steps=1"), "--separate_documents"])
    trainer.run(*settings)
    trainer.run(
        *trainer.settings_from([*flags(work, "--out=d1", "--max_steps=1", "--micro_batch=1"), "--separate_documents"])
    )
    go(work, "--out=n4", "--max_steps=1")
    agree(work / "d4", work / "d1")
    assert read_log(work / "d4")[0]["nll_base"] != read_log(work / "n4")[0]["nll_base"]


@pytest.mark.parametrize("objective", ["quiet_star", "lm"])
def test_two_processes_under_torchrun_equal_one(work, objective):
    """Gradients that are summed instead of averaged, or ranks that read the same texts, show here."""
    go(work, "--out=one", "--max_steps=1", f"--objective={objective}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0", "--standalone"]
    command = [*launch, "train.py", *flags(work, "--out=two", "--max_steps=1", f"--objective={objective}")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "on 2 x cpu" in done.stdout + done.stderr
    agree(work / "one", work / "two")


def test_a_missing_base_model_is_trained_first_by_its_preset(work, tmp_path):
    preset = tmp_path / "base.toml"
    base = dict(objective="lm", out=str(work / "made"), data=str(work / "data"), init_from="", base_preset="", span=12)
    base |= dict(
        batch_size=4, max_steps=2, eval_texts=2, dim=16, n_layers=1, head_dim=8, hidden_dim=24, n_heads=2, n_kv_heads=1
    )
    preset.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in base.items()))
    go(work, "--out=q", "--init_from=made", "--max_steps=1", f"--base_preset={preset}")
    assert load_checkpoint(work / "made")["step"] == 2 and load_checkpoint(work / "q")["step"] == 1


def test_language_modelling_goes_on_from_a_thinking_run_without_what_it_thought_with(work):
    go(work, "--out=q", "--max_steps=2", "--thought_len=2")
    go(work, "--objective=lm", "--init_from=q", "--out=lm", "--max_steps=1", "--lr=0")
    thinking, plain = (load_checkpoint(work / name)["model"] for name in ("q", "lm"))
    assert same(plain, {k.removeprefix("model."): v for k, v in thinking.items() if k.startswith("model.")})
    go(work, "--init_from=q", "--out=q2", "--max_steps=1", "--lr=0", "--thought_len=1")
    for name, weight in load_checkpoint(work / "q2")["model"].items():  # with its heads and thought tokens
        torch.testing.assert_close(weight, thinking[name], msg=name)


def refusal(work, *more):
    """The one line that a run is refused with."""
    with pytest.raises(SystemExit) as stop:
        go(work, *more)
    message = str(stop.value.code)
    assert message.startswith("train.py: error: ") and "\n" not in message
    return message


def test_bad_flags_are_one_line_on_stderr_and_exit_status_2(work, capsys):
    for flag, expected in [
        ("--foo=1", "unrecognized arguments: --foo=1"),
        ("--lr=fast", "invalid float value: 'fast'"),
        ("--thought_len=-1", "thought_len must be at least 0"),
        ("--n_thoughts=0", "n_thoughts must be at least 1"),
        ("--objective=sft", "objective must be one of"),
        ("--batch_size=0", "batch_size must be at least 1"),
        ("--n_heads=3", "n_heads (3) must be a multiple"),
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
    assert "another tokenizer" in refusal(work, "--out=q", "--data=other")
    assert "fewer than one span" in refusal(work, "--out=q", "--span=100")
    assert "--dim=32, but the model in" in refusal(work, "--out=q", "--dim=32")
    assert "is no run of train.py" in refusal(work, "--out=q", "--init_from=nowhere")
    assert "micro_batch 3 does not divide" in refusal(work, "--out=q", "--micro_batch=3")
    assert "Not a directory" in refusal(work, "--out=file/q")
    assert not (work / "q").exists()


def test_damaged_data_and_checkpoints_are_refused(work):
    go(work, "--out=q", "--max_steps=1")
    assert "holds another run (lr is" in refusal(work, "--out=q", "--lr=1", "--max_steps=2")
    checkpoint = work / "q" / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    assert "damaged or cut short" in refusal(work, "--out=q", "--max_steps=2")
    config = json.loads((work / "base" / "config.json").read_text())
    config["model"]["hidden_dim"] = 32
    (work / "base" / "config.json").write_text(json.dumps(config))
    assert "it holds (24, 16) for layers.0.feed_forward.w1.weight, (32, 16) is wanted" in refusal(work, "--out=p")
    (work / "data" / "train.bin").write_bytes(b"\0\0")
    assert "cut short" in refusal(work, "--out=p")


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_last_good_checkpoint(work):
    message = refusal(work, "--out=q", "--lr=1e30", "--warmup_steps=0", "--save_every=1", "--max_steps=9")
    assert "the loss is nan at step 1" in message and str(work / "q" / "checkpoint.pt") in message
    assert load_checkpoint(work / "q")["step"] == 1


def test_help_lists_every_setting_with_its_comment_and_does_without_torch(work):
    """Importing torch takes a second, and whoever asks for help has done nothing yet."""
    command = [sys.executable, "-X", "importtime", "train.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "torch" not in done.stderr
    words = " ".join(done.stdout.split())
    for cls in (trainer.TrainConfig, trainer.ModelConfig, trainer.QuietSTaRConfig):
        for field in dataclasses.fields(cls):
            said = words.split(f" --{field.name} ")[-1].split(" --")[0]
            flag = f"--{field.name}"
            assert flag in words and f"(default: {field.default})" in words, flag
            assert cls.__name__ in words and (field.type is bool or len(said.split("(default")[0].split()) > 1), flag


def test_the_script_itself_exits_non_zero_with_one_line(work):
    done = subprocess.run([sys.executable, "train.py", "--foo"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not done.stdout
    done = subprocess.run(
        [sys.executable, "train.py", *flags(work, "--data=nowhere")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


# ----------------------------------------------------------------------------------------------------------------------
# nothing is lost


def start(work, out, *more):
    command = [sys.executable, str(ROOT / "train.py"), *flags(work, f"--out={out}", *more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


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
    whole, again = (load_checkpoint(work / name) for name in ("whole", "killed"))
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


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:5000] + bytes([b[5000] ^ 1]) + b[5001:]])
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_says_so(work, capsys, damage):
    """A flipped bit is found by its checksum; torch alone would load it."""
    go(work, "--out=q", "--max_steps=4", "--save_every=1")
    path = work / "q" / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    assert load_checkpoint(work / "q")["step"] == 3
    assert "going back to checkpoint_before.pt, step 3" in capsys.readouterr().err
    go(work, "--out=q", "--max_steps=4", "--save_every=1")
    go(work, "--out=whole", "--max_steps=4", "--save_every=1")
    assert same(load_checkpoint(work / "q")["model"], load_checkpoint(work / "whole")["model"])
    for path in (work / "q").glob("checkpoint*.pt"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="delete it to start anew"):
        load_checkpoint(work / "q")


@pytest.mark.parametrize("way", [[], ["--parallel=fsdp"]])
def test_the_last_k_checkpoints_are_kept_and_each_serves(work, way):
    ending = "dcp" if way else "pt"
    go(work, "--out=q", "--max_steps=5", "--save_every=1", "--keep=3", *way)
    names = [f"checkpoint{name}.{ending}" for name in ("", "_before", "_before_2")]
    assert sorted(path.name for path in (work / "q").glob(f"checkpoint*{ending}")) == sorted(names)
    for step, name in zip((5, 4, 3), names, strict=True):
        assert load_checkpoint(work / "q")["step"] == step
        (work / "q" / name).rename(work / name)
    for name in names:
        (work / name).rename(work / "q" / name)
    go(work, "--out=q", "--max_steps=6", "--save_every=1", *way)  # fewer are wanted now
    assert sorted(path.name for path in (work / "q").glob(f"checkpoint*{ending}")) == sorted(names[:2])
    if way:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("way", [[], ["--parallel=fsdp"]])
def test_killed_between_its_renames_the_newest_is_loaded_and_nothing_is_lost_by_going_on(work, way):
    """Nor is a copy that somebody made."""
    ending = "dcp" if way else "pt"
    go(work, "--out=q", "--max_steps=3", "--save_every=1", *way)
    (work / "q" / f"checkpoint.{ending}").rename(work / "q" / f"checkpoint_new.{ending}")
    (work / "q" / f"checkpoint_mine.{ending}").mkdir()
    assert load_checkpoint(work / "q")["step"] == 3
    go(work, "--out=q", "--max_steps=4", "--save_every=1", *way)
    names = {path.name for path in (work / "q").glob(f"checkpoint*.{ending}")}
    assert names == {f"checkpoint{name}.{ending}" for name in ("", "_before", "_mine")}
    for step, name in ((4, "checkpoint"), (3, "checkpoint_before")):
        assert load_checkpoint(work / "q")["step"] == step
        (work / "q" / f"{name}.{ending}").rename(work / f"{name}.gone")
    if way:
        torch.distributed.destroy_process_group()


def test_a_rotation_that_was_broken_off_anywhere_keeps_what_there_is(tmp_path):
    """With three kept, at each of its renames: the two newest of before are still there after the next save."""
    for broken in range(4):
        folder = tmp_path / str(broken)
        folder.mkdir()
        for step in (1, 2, 3):
            save_checkpoint(folder, {"step": step}, keep=3)
        renames, rename = [], os.rename

        def breaks(*paths, broken=broken, renames=renames, rename=rename):
            renames.append(paths)
            if len(renames) > broken:
                raise KeyboardInterrupt
            rename(*paths)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("checkpoint.os.rename", breaks)
            if broken < 3:
                with pytest.raises(KeyboardInterrupt):
                    save_checkpoint(folder, {"step": 4}, keep=3)
            else:
                save_checkpoint(folder, {"step": 4}, keep=3)
        assert load_checkpoint(folder)["step"] == 4
        save_checkpoint(folder, {"step": 5}, keep=3)
        steps = [torch.load(path, weights_only=True)["step"] for path in checkpoints(folder, ".pt")]
        assert steps == [5, 4, 3], broken


def test_a_full_disk_is_one_line_and_leaves_the_last_good_checkpoint(work, monkeypatch):
    go(work, "--out=q", "--max_steps=2", "--save_every=1")

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("checkpoint.torch.save", full)
    with pytest.raises(SystemExit, match="No space left on device.*the last good checkpoint is kept") as stop:
        go(work, "--out=q", "--max_steps=4", "--save_every=1")
    assert "\n" not in stop.value.code and not list((work / "q").glob("*.tmp"))
    assert load_checkpoint(work / "q")["step"] == 2


def test_two_runs_on_one_folder_the_second_refuses(work):
    go(work, "--out=q", "--max_steps=1")
    claimed = trainer.lock(work / "q")
    process = start(work, "q", "--max_steps=2")
    _, errors = process.communicate()
    assert process.returncode == 1 and errors.strip().endswith("right now: choose another --out")
    claimed.close()
    go(work, "--out=q", "--max_steps=2")

"""
Numbers as large as a command line takes: whatever comes of them, it is no traceback. Each script runs as a user would
run it, on something tiny, with little memory, and is stopped after a while.

    python -m pytest tests/faults/test_big_numbers.py -m slow
"""

import contextlib
import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from byte_tokenizer import write_byte_tokenizer
from tiny_runs import COMMON, ROOT, SHAPE

import train as trainer
from data.arithmetic.prepare import ArithmeticConfig
from data.cups.prepare import CupsConfig
from data.dataset import write_dataset
from data.text import TokenizeConfig
from data.textfile.prepare import TextfileConfig
from eval import GainsConfig
from lib.config import bare_type, from_cli
from lib.questions import QuestionsConfig
from lib.runs import load_model
from lib.tokenizer import CharTokenizer
from lib.weights import save_mistral
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR, QuietSTaRConfig
from sample import SampleConfig
from studies.bench import BenchConfig
from studies.demo import DemoConfig
from studies.memory import MemoryConfig
from studies.runs import StudyConfig
from train import TrainConfig

SECONDS, PATIENCE, MEMORY, FILE = 20, 120, 6 * 2**30, 2**31
HARMLESS = {  # where a large number only means all, or nothing at all: the script must come to its end
    "train": "warmup_steps eval_every save_every keep seed",
    "gains": "texts page_tokens batch_size",
    "gsm8k": "batch_size seed",
    "votes": "batch_size seed",
    "commonsense_qa": "batch_size seed",
    "sample": "seed",
    "demo": "texts batch_size",
    "textfile": "max_tokens processes",
}
BIG = {int: ("1000000000", str(2**53)), float: ("1e9", "1e300")}
TINY = " ".join(SHAPE)
QUESTIONS = "--run=weights --max_new_tokens=2 --device=cpu --out=questions_out"
BENCH = f"-m studies.bench --texts=2 --span=8 --repeats=1 --new_tokens=2 --device=cpu {TINY}"
TRAIN = (TrainConfig, ModelConfig, QuietSTaRConfig)
STEPS = f"train.py --out=new --max_steps=2 --eval_every=1 --data=data {' '.join(COMMON)}"
MAKE = "--out=new_data --train_documents=20 --val_documents=20"
SCRIPTS = {  # its command line, the classes of its settings, and which of them are made large, if not all
    "train": (f"{STEPS} --init_from=base", TRAIN, (TrainConfig, QuietSTaRConfig)),
    "train a base": (f"{STEPS} --objective=lm --init_from= {TINY}", TRAIN, (ModelConfig,)),
    "gains": ("eval.py gains --run=run --texts=2 --device=cpu --out=gains", (GainsConfig,)),
    "gsm8k": (f"eval.py gsm8k --data=gsm8k {QUESTIONS}", (QuestionsConfig,)),
    "votes": (f"eval.py gsm8k --data=gsm8k {QUESTIONS} --cot --votes=2", (QuestionsConfig,)),
    "commonsense_qa": (f"eval.py commonsense_qa --data=commonsense_qa {QUESTIONS}", (QuestionsConfig,)),
    "sample": ("sample.py --run=run --prompt=ab --max_new_tokens=2 --temperature=1 --device=cpu", (SampleConfig,)),
    "bench": (BENCH, (BenchConfig, ModelConfig, QuietSTaRConfig)),
    "memory": (f"-m studies.memory --init_from= --vocab_size=42 {TINY} --span=8",
               (MemoryConfig, *TRAIN)),
    "demo": ("-m studies.demo --out=demo --texts=8 --device=cpu", (DemoConfig,)),
    "study": ("-m studies.controls --out=study --steps=1 --texts=2 --seeds=1 --jobs=2", (StudyConfig,)),
    "arithmetic": (f"data/arithmetic/prepare.py {MAKE}", (ArithmeticConfig,)),
    "cups": (f"data/cups/prepare.py {MAKE}", (CupsConfig,)),
    "textfile": ("data/textfile/prepare.py --source=book.txt --tokenizer=weights --out=new_data --processes=1",
                 (TextfileConfig, TokenizeConfig)),
}  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Tiny runs, weights, questions and corpora."""
    work, before = tmp_path_factory.mktemp("big"), os.getcwd()
    os.chdir(work)
    try:
        ids = np.random.default_rng(0).integers(0, 6, 600)
        for name in ("data", "data/arithmetic"):
            answers = {"after": 2, "among": [0, 1, 3]}
            write_dataset(
                name, {"train": ids, "val": ids[:100]}, CharTokenizer("abcde\n"), 5, answers
            )
        for out, *flags in (["base", "--objective=lm", "--init_from="], ["run", "--init_from=base"],
                            ["demo/base", "--objective=lm", "--init_from="], ["demo/lm_control", "--objective=lm"],
                            ["demo/quiet_star", "--init_from=base"]):  # fmt: skip
            flags = [
                *COMMON,
                *SHAPE,
                "--data=data",
                "--init_from=base",
                "--max_steps=1",
                f"--out={out}",
                *flags,
            ]
            trainer.run(*trainer.settings_from(flags))
        write_byte_tokenizer("weights")
        shape = dict(flag.removeprefix("--").split("=") for flag in SHAPE)
        model = Transformer(
            ModelConfig(vocab_size=258, **{name: int(x) for name, x in shape.items()})
        )
        save_mistral(model, "weights")
        quiet = QuietSTaR(model, QuietSTaRConfig(thought_len=2))
        heads = {name: x for name, x in quiet.state_dict().items() if not name.startswith("model.")}
        torch.save(heads, "weights/quiet_star.pt")
        Path("weights/quiet_star.json").write_text(json.dumps(vars(quiet.config)))
        load_model("weights")
        choices = {"choices": ["up", "here", "off", "no", "in"], "answer": "B"}
        for name, more in (("gsm8k", {"answer": "3"}), ("commonsense_qa", choices)):
            Path(name).mkdir()
            lines = "".join(
                json.dumps({"question": f"What is {n}?", **more}) + "\n" for n in range(2)
            )
            Path(name, "questions.jsonl").write_text(lines)
        Path("book.txt").write_text("\n\n\n".join(f"page {n}" for n in range(400)))
    finally:
        os.chdir(before)
    return work


def big_flags(script):
    """Flags of a script with large values that its parser takes."""
    line, classes, *large = SCRIPTS[script]
    given = [flag for flag in line.split() if flag.startswith("--")]
    for field in (field for cls in (large or [classes])[0] for field in dataclasses.fields(cls)):
        for value in BIG.get(bare_type(field.type), ()):
            with contextlib.suppress(SystemExit):
                from_cli("", *classes, argv=[*given, f"--{field.name}={value}"])
                yield f"--{field.name}={value}"


def limit():
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE, FILE))


def call(script, more, work, number, seconds=SECONDS):
    """(status, or None if it was stopped; all it said) of a script with more flags, in a folder of its own."""
    folder = work.parent / f"{work.name}_{script.replace(' ', '_')}_{number}"
    subprocess.run(["cp", "-r", work, folder], check=True)
    program, *flags = SCRIPTS[script][0].split()
    program = [str(ROOT / program)] if program.endswith(".py") else [program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *program, *flags, *more]
    how = dict(
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    with subprocess.Popen(command, cwd=folder, env=environment, preexec_fn=limit, **how) as process:
        try:
            said, status = process.communicate(timeout=seconds)[0], process.returncode
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, status = process.communicate()[0], None
    subprocess.run(["rm", "-rf", folder], check=True)
    return status, said


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_large_numbers_are_no_traceback(script, work):
    status, said = call(script, [], work, "small", PATIENCE)
    assert status == 0, f"{script}: status {status}, {said[-800:]}"

    def large(flag):
        harmless = flag[2:].partition("=")[0] in HARMLESS.get(script, "").split()
        status, said = call(script, [flag], work, flag, PATIENCE if harmless else SECONDS)
        line, died = said.strip().split("\n")[-1], status is not None and status < 0
        wrong = (
            "Traceback" in said
            or died
            or bool(status)
            and len(line) > 600
            or harmless
            and status != 0
        )
        print(
            f"{script} {flag}: {'stopped' if status is None else status} {line[:160] if status else ''}"
        )
        return f"{script} {flag}: status {status}, {line[:300]}" if wrong else None

    with ThreadPoolExecutor(2) as pool:
        failed = [line for line in pool.map(large, big_flags(script)) if line]
    assert not failed, f"{len(failed)} failed\n" + "\n".join(failed)

"""README.md, typed from top to bottom in a fresh copy, with nothing made beforehand.

Long commands get few steps. What would be downloaded is replaced by something small of its kind.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from byte_tokenizer import write_byte_tokenizer
from tiny_runs import ROOT

from lib.weights import save_mistral
from model import ModelConfig, Transformer

# what is not typed here: it installs, or is this test
SKIPPED = ("make test", "source ", "pip install", "python data/smollm2/prepare.py")
MORE = {  # flags that make a command short, or save it a download
    "train.py": "--eval_texts=4 --device=cpu",
    "studies.demo": "--texts=4 --device=cpu",
    "eval.py": "--device=cpu --batch_size=32",
    "sample.py": "--device=cpu",
    "data/gsm8k/prepare.py": "--source=gsm8k.jsonl --any_hash",
    "data/commonsense_qa/prepare.py": "--source=commonsense_qa.jsonl --any_hash",
}


def commands(page):
    """The shell commands of its indented blocks, each a line; `make` as what it would run."""
    text = page.replace("\\\n", "")
    for line in re.findall(r"^    ((?:make|python|torchrun|source|pip) .*)$", text, re.MULTILINE):
        for command in line.split("#")[0].split("&&"):
            if command.strip() != "make demo":
                yield command.strip()
                continue
            how = ["make", "--no-print-directory", "-n", "-o", ".venv/for_demo", "demo"]
            alone = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
            ran = {"cwd": ROOT, "env": alone, "capture_output": True, "text": True, "check": True}
            done = subprocess.run(how, **ran)
            yield from done.stdout.strip().split("\n")


@pytest.fixture
def fresh_copy(tmp_path):
    """What git would clone, a user's notes, and stand-ins for what cannot be downloaded here."""
    found = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("this is no clone")
    copy = tmp_path / "quiet-star"
    for name in found.stdout.splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    shorter = {  # two steps, after which the base model has learned nothing
        "config/arithmetic_base.toml": ("max_steps = 2000", "max_steps = 2"),
        "config/smollm2.toml": ("max_steps = 200", "max_steps = 2"),
        "train.py": ("max_steps: int = 300", "max_steps: int = 2"),
        "data/arithmetic/check.py": ("LEAST = 0.99", "LEAST = 0.0"),
    }
    for name, (long, short) in shorter.items():
        text = (copy / name).read_text("utf-8")
        assert text.count(long) == 1, name
        (copy / name).write_text(text.replace(long, short), "utf-8")
    torch.manual_seed(0)
    shape = dict(dim=16, n_layers=1, head_dim=8, hidden_dim=16, n_heads=2, n_kv_heads=1)
    save_mistral(Transformer(ModelConfig(**shape, vocab_size=258)), copy / "weights" / "smollm2")
    write_byte_tokenizer(copy / "weights" / "smollm2")
    (copy / "notes").mkdir()
    for number in range(400):
        (copy / "notes" / f"{number}.txt").write_text(f"Note {number}. " * 20)
    (copy / "page.txt").write_text("A page of mine. " * 40)
    with open(copy / "gsm8k.jsonl", "w") as gsm8k, open(copy / "commonsense_qa.jsonl", "w") as qa:
        choices = [{"label": label, "text": label.lower()} for label in "ABCDE"]
        for n in range(200):
            gsm8k.write(json.dumps({"question": f"{n}?", "answer": f"#### {n}"}) + "\n")
            question = {"stem": f"{n}?", "choices": choices}
            qa.write(json.dumps({"question": question, "answerKey": "ABCDE"[n % 5]}) + "\n")
    return copy


def test_the_readme_runs_from_top_to_bottom(fresh_copy):
    """Catches a command that needs what a later one makes, or that nobody has made."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    with socket.socket() as free:  # torchrun's own port may be taken by another test
        free.bind(("127.0.0.1", 0))
        environment["PET_MASTER_PORT"] = str(free.getsockname()[1])
    done = []
    for command in commands((ROOT / "README.md").read_text("utf-8")):
        if command.startswith(SKIPPED):
            continue
        words = shlex.split(command.replace("$'\\n", "'\n").replace(".venv/bin/", ""))
        start = [sys.executable, "-m", "torch.distributed.run"]
        words = (start if words[0] == "torchrun" else start[:1]) + words[1:]
        for script, more in MORE.items():
            if script in words:
                words += more.split()
        ran = subprocess.run(words, cwd=fresh_copy, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, f"{command}: {ran.stderr[-1500:]}"
        done.append(command)
    assert len(done) > 12
    for made in ("out/demo/results.json", "out/two", "out/notes", "data/notes/meta.json"):
        assert (fresh_copy / made).exists(), made

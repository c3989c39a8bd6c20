"""
Studies: a claim beside its controls, over several seeds. This file trains the runs that a study
needs, and starts it. The same command again, after an interruption, trains what is left.
"""

import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tqdm import tqdm

from data.arithmetic import prepare as arithmetic
from data.arithmetic.check import check
from lib.config import run_script
from lib.files import read_json, refuse_another, write_json
from train import HERE


@dataclass
class StudyConfig:
    out: str = "out/paper"  # folder of all runs, tables and pictures
    seeds: str = "1337,1,2"  # each row is trained with each of these
    jobs: int = os.cpu_count()  # runs at a time, one CPU thread each
    steps: int = 0  # optimizer steps of each run, to try whether all works; 0: as presets say
    only: str = ""  # the study of this name alone
    texts: int = 512  # held-out spans (of GSM8K: solutions) to measure on

    def __post_init__(self):
        if not re.fullmatch(r" *[0-9]+ *(, *[0-9]+ *)*", self.seeds):
            raise ValueError(f"seeds must be numbers with commas between them, not {self.seeds!r}")
        if self.jobs < 1 or self.texts < 2:
            raise ValueError("jobs must be at least 1, texts 2")

    def all_seeds(self):
        return [int(seed) for seed in self.seeds.split(",")]


def run_studies(description, *studies):
    """The command line of some studies. A study is a function of the settings and the folder that
    it writes its picture to. What it returns is kept in results.json, under its name."""

    def run(config):
        out = Path(config.out, f"{config.steps}_steps" if config.steps else "")  # trials apart
        out.mkdir(parents=True, exist_ok=True)
        chosen = [study for study in studies if config.only in ("", study.__name__)]
        if not chosen:
            raise ValueError(f"only={config.only}: there are {[x.__name__ for x in studies]}")
        asked, path = {"seeds": config.seeds, "texts": config.texts}, out / "results.json"
        for study in chosen:
            about = out / f"{study.__name__}_asked.json"
            refuse_another(about, asked)
            took = f"{read_json(about).get('seconds', 0):.0f} s" if about.exists() else "not yet"
            print(f"{study.__name__:10} last time: {took:10} {' '.join(study.__doc__.split())}")
        print(f"mean and spread over seeds {config.seeds}; NLL in nats", flush=True)
        for study in chosen:
            name, start = study.__name__, time.perf_counter()
            results = study(config, out)
            write_json(path, (read_json(path) if path.exists() else {}) | {name: results})
            seconds = time.perf_counter() - start
            write_json(out / f"{name}_asked.json", {"asked": asked, "seconds": seconds})
            print(f"\ntable: {path}   picture: {out}/{name}.png   {seconds:.0f} s", flush=True)

    run_script("studies", description, run, StudyConfig)


def prepare(data, **settings):
    """Make a corpus of sums where it is missing: here, not by runs that begin at the same time."""
    if not Path(data, "meta.json").exists():
        arithmetic.prepare(arithmetic.ArithmeticConfig(out=data, **settings))


def train_all(runs, jobs):
    """Train runs {folder: flags}, `jobs` at a time, each on one thread, what it says in a file. If
    one fails, no other begins: ValueError."""

    def train(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, HERE / "train.py", f"--out={folder}", "--device=cpu"]
        log, env = folder.with_name(f"{folder.name}.log"), {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(log, "ab") as file:
            how = {"env": env, "stdout": file, "stderr": subprocess.STDOUT}
            done = subprocess.run([*command, *runs[folder]], **how)
        if done.returncode:
            last = log.read_text("utf-8").strip().split("\n")[-1]
            raise ValueError(f"train.py ended with status {done.returncode} ({last}); see {log}")

    with ThreadPoolExecutor(jobs) as pool:
        list(tqdm(pool.map(train, runs), "training", len(runs), unit="run", disable=None))


def train_rows(config, out, rows, preset):
    """Train each row {name: flags} with each seed: {name: the folder of its runs}, which are called
    by their seeds. A {seed} in a flag stands for the seed."""
    folders = {name: out / re.sub("[^a-zA-Z0-9]+", "_", name) for name in rows}
    runs, trial = {}, [f"--max_steps={config.steps}"] if config.steps else []
    for name, seed in product(rows, config.all_seeds()):
        flags = [*preset, *rows[name], *trial, "--seed={seed}"]
        runs[folders[name] / str(seed)] = [flag.replace("{seed}", str(seed)) for flag in flags]
    train_all(runs, config.jobs)
    return folders


BASE = [f"--config={HERE / 'config' / 'arithmetic_base.toml'}", "--eval_every=0"]
FROM_BASE = ["--base_preset=", "--eval_every=0"]
# Two texts: their data, and how they are made. In the plain one all asides are worked. In the
# other, the demo's, most are idle.
TEXTS = {
    "plain": ("data/plain", {"chatter": 0.0, "double": 0.3}),
    "chatter": ("data/arithmetic", {}),
}
FULL = {"full": ["--gain_head"]}  # the row that several studies look at


def train_on(text, config, out, rows):
    """Train the base models of a text, one for each seed, and rows {name: flags} that start from
    them: {name: the folder of its runs}, "base" among them. Raises ValueError, which names the
    folder, if a base model has not learned its steps."""
    data, made_by = TEXTS[text]
    prepare(data, **made_by)
    folders = train_rows(config, out / text, {"base": []}, [*BASE, f"--data={data}"])
    for seed in config.all_seeds() if not config.steps else []:
        check(folders["base"] / str(seed))
    start = [f"--init_from={folders['base']}/{{seed}}", f"--data={data}"]
    return folders | train_rows(config, out / text, rows, [*FROM_BASE, *start])

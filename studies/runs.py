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

from data.arithmetic.check import check
from lib.config import run_script
from lib.files import read_json, refuse_another, write_json
from train import HERE, TrainConfig


@dataclass
class StudyConfig:
    out: str = "out/paper"  # folder of all runs, tables and pictures
    seeds: str = "1337,1,2"  # each row is trained with each of these, from a base model of its own
    jobs: int = os.cpu_count()  # runs at a time, one CPU thread each
    steps: int = 0  # optimizer steps of each run, to try whether all works; 0: as presets say
    texts: int = 512  # held-out spans to measure on

    def __post_init__(self):
        if not all(x.strip().isdigit() for x in self.seeds.split(",")):
            raise ValueError(f"seeds must be numbers with commas between them, not {self.seeds!r}")
        if min(self.jobs, self.texts) < 1 or self.steps < 0:
            raise ValueError("jobs and texts must be at least 1, steps not negative")

    def all_seeds(self):
        return [int(seed) for seed in self.seeds.split(",")]


def run_studies(description, *studies, config_class=StudyConfig):
    """The command line of some studies. A study is a function of the settings and the folder that
    it writes its picture to. What it returns is kept in results.json, under its name."""

    def run(config):
        out = Path(config.out, f"{config.steps}_steps" if config.steps else "")  # trials apart
        out.mkdir(parents=True, exist_ok=True)
        asked, path = {"seeds": config.seeds, "texts": config.texts}, out / "results.json"
        for study in studies:
            name, start = study.__name__, time.perf_counter()
            refuse_another(out / f"{name}_asked.json", asked)
            print(f"\n{name}: {' '.join(study.__doc__.split())}")
            print(f"mean and spread over seeds {config.seeds}; NLL in nats", flush=True)
            results = study(config, out)
            write_json(path, (read_json(path) if path.exists() else {}) | {name: results})
            write_json(out / f"{name}_asked.json", {"asked": asked})
            seconds = time.perf_counter() - start
            print(f"\ntable: {path}   picture: {out}/{name}.png   {seconds:.0f} s")

    run_script("studies", description, run, config_class)


def script(name, *flags, log):
    """Run a script of this project on one thread, its output in a file. Raises ValueError."""
    log.parent.mkdir(parents=True, exist_ok=True)
    how = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stderr": subprocess.STDOUT}
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, HERE / name, *flags], stdout=file, **how)
    if done.returncode:
        last = log.read_text("utf-8").strip().split("\n")[-1]
        raise ValueError(f"{name} ended with status {done.returncode} ({last}); see {log}")


def train_all(runs, jobs):
    """Train runs {folder: flags}, `jobs` at a time. If one fails, no other begins: ValueError."""

    def train(folder):
        flags = [f"--out={folder}", "--device=cpu", *runs[folder]]
        script("train.py", *flags, log=folder.parent / f"{folder.name}.log")

    with ThreadPoolExecutor(jobs) as pool:
        list(tqdm(pool.map(train, runs), "training", len(runs), unit="run", disable=None))


def train_rows(config, out, rows, preset):
    """Train each row {name: flags} with each seed: {name: the folder of its runs}, which are called
    by their seeds. A {seed} in a flag stands for the seed."""
    folders = {name: out / re.sub("[^a-zA-Z0-9]+", "_", name) for name in rows}
    runs = {}
    for name, seed in product(rows, config.all_seeds()):
        flags = [*preset, *rows[name], "--seed={seed}"]
        runs[folders[name] / str(seed)] = [flag.replace("{seed}", str(seed)) for flag in flags]
    train_all(runs, config.jobs)
    return folders


def max_steps(config, steps=TrainConfig.max_steps, times=1):
    """The flag that sets how many steps a run takes: so many, or as many as --steps asks for."""
    return f"--max_steps={times * (config.steps or steps)}"


def prepare(data, out, *flags):
    """Make a corpus of sums where it is missing: here, not by runs that begin at the same time."""
    if not Path(data, "meta.json").exists():
        log = out / f"{Path(data).name}.log"
        script("data/arithmetic/prepare.py", f"--out={data}", *flags, log=log)


# Two texts, by the flags that make them, and the settings of runs on them. In the plain one asides
# are worked, so thoughts are useful from the start. In the other most are idle: REINFORCE chooses.
PLAIN, CHATTER = "data/plain", "data/arithmetic"
TEXTS = {PLAIN: ["--chatter=0", "--double=0.3"], CHATTER: []}
SETTINGS = {PLAIN: ["--n_thoughts=2"], CHATTER: []}
BASE = [f"--config={HERE / 'config' / 'arithmetic_base.toml'}", "--eval_every=0"]
FROM_BASE = ["--base_preset=", "--eval_every=0"]
FULL = {"full": ["--gain_head"]}  # the row that several studies look at


def train_bases(config, out, data=PLAIN):
    """Train the base models of a text, one for each seed. Returns the flags of runs that start from
    them. Raises ValueError, which names the folder, if one has not learned its steps."""
    prepare(data, out, *TEXTS[data])
    name = "base" if data == PLAIN else "chatter_base"
    preset = [*BASE, f"--data={data}", *([max_steps(config)] if config.steps else [])]
    train_rows(config, out, {name: []}, preset)
    for seed in config.all_seeds() if not config.steps else []:
        check(out / name / str(seed))
    start = [f"--init_from={out / name}/{{seed}}", f"--data={data}", max_steps(config)]
    return [*FROM_BASE, *start, *SETTINGS[data]]

"""
Studies: a claim beside its controls, over several seeds. This file trains the runs that a study needs and starts it.
Runs that are there already are not trained again, so a study that was stopped goes on with the same command.
"""

import copy
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

from data.arithmetic.check import check
from lib.checkpoint import checkpoints
from lib.config import run_script
from lib.files import refuse_another, write_json
from lib.runs import load_weights, read_config
from lib.tokenizer import from_json
from studies.bench import read_per_token
from train import HERE, build_model, settings_from


@dataclass
class StudyConfig:
    out: str = "out/paper"  # folder of all runs, tables and pictures
    seeds: str = "1337,1,2"  # each row is trained with each of these, from base models of their own
    jobs: int = os.cpu_count()  # runs at a time, one CPU thread each
    steps: int = 0  # optimizer steps of each run, in a folder of its own: to try whether all works; 0: as presets say
    texts: int = 512  # held-out spans to measure on

    def __post_init__(self):
        if not all(x.strip().isdigit() for x in self.seeds.split(",")):
            raise ValueError(f"seeds must be numbers with commas between them, not {self.seeds!r}")
        if min(self.jobs, self.texts) < 1 or self.steps < 0:
            raise ValueError("jobs and texts must be at least 1, steps not negative")

    def all_seeds(self):
        return [int(seed) for seed in self.seeds.split(",")]


def run_studies(description, *studies, argv=None):
    """The command line of a study, or of several in turn: functions of the settings and the folder they write to."""

    def run(config):
        out = Path(config.out) / f"{config.steps}_steps" if config.steps else Path(config.out)
        out.mkdir(parents=True, exist_ok=True)
        for study in studies:
            name, start, asked = (
                study.__name__,
                time.perf_counter(),
                {"seeds": config.seeds, "texts": config.texts},
            )
            refuse_another(out / f"{name}_asked.json", asked)
            print(f"\n{name}: {' '.join(study.__doc__.split())}", flush=True)
            study(config, out)
            write_json(out / f"{name}_asked.json", {"asked": asked})
            took = time.perf_counter() - start
            print(
                f"\ntable: {out / 'results.json'}   picture: {out / name}.png   {took:.0f} s",
                flush=True,
            )

    run_script("studies", description, run, StudyConfig, argv=argv)


def script(name, *flags, log):
    """Run a script of this project on one thread; what it prints goes to a file. Raises ValueError, in one line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command, environment = (
        [sys.executable, str(HERE / name), *flags],
        {**os.environ, "OMP_NUM_THREADS": "1"},
    )
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        last = log.read_text("utf-8").strip().split("\n")[-1]
        raise ValueError(f"{name} ended with status {done.returncode} ({last}); see {log}")


def train_all(runs, jobs):
    """Train runs {folder: flags}, `jobs` at a time."""

    def train(folder, flags):
        script(
            "train.py",
            f"--out={folder}",
            "--device=cpu",
            *flags,
            log=folder.parent / f"{folder.name}.log",
        )

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(train, *run) for run in runs.items()]
        try:
            for future in tqdm(waiting, desc="training", unit="run", disable=None):
                future.result()
        except BaseException:  # Ctrl-C, say: those that run stop by themselves, and no other begins
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def in_parallel(calls, jobs, title):
    """What calls {key: (function, its arguments ..)} return, `jobs` at a time, each in a process with one thread."""
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        waiting = {key: pool.submit(*call) for key, call in calls.items()}
        return {key: x.result() for key, x in tqdm(waiting.items(), desc=title, disable=None)}


def train_rows(config, out, rows, preset):
    """Train each row {name: flags} with each seed: {(name, seed): (folder, flags)}. A folder is out/name/seed, and
    {seed} in a flag is the seed."""
    runs = {}
    for name, seed in product(rows, config.all_seeds()):
        flags = [
            flag.replace("{seed}", str(seed)) for flag in [*preset, *rows[name], "--seed={seed}"]
        ]
        runs[name, seed] = out / re.sub("[^a-zA-Z0-9]+", "_", name) / str(seed), flags
    train_all(dict(runs.values()), config.jobs)
    return runs


def fewer_steps(config):
    """The flag that --steps asks for in place of a preset's number of steps."""
    return [f"--max_steps={config.steps}"] if config.steps else []


def max_steps(config, times=1):
    """The flag that sets how many steps a run takes: as many as train.py's default or --steps, so many times."""
    return f"--max_steps={times * (config.steps or settings_from([])[0].max_steps)}"


def prepare(data, name, out, *flags):
    """Make a corpus by its script where it is missing; here, and not by runs that begin at the same time."""
    if not Path(data, "meta.json").exists():
        script(name, f"--out={data}", *flags, log=out / f"{Path(data).name}.log")


# The texts of studies, by the flags of data/arithmetic/prepare.py that make them. Most studies are about sums whose
# asides are all worked: there a thought is useful from the start, and one question is left at a time.
PLAIN, CHATTER = "data/plain", "data/arithmetic"
TEXTS = {PLAIN: ["--chatter=0", "--double=0.3"], CHATTER: []}
# With nothing to choose among, half of the thoughts are enough.
SETTINGS = {PLAIN: ["--n_thoughts=2"], CHATTER: []}


def train_bases(config, out, data=PLAIN):
    """The base models of a text, one a seed: the flags of runs that start from them. Raises ValueError, which names the
    folder, if one of them has not learned its steps."""
    prepare(data, "data/arithmetic/prepare.py", out, *TEXTS[data])
    name = "base" if data == PLAIN else "chatter_base"
    preset = [
        f"--config={HERE / 'config' / 'arithmetic_base.toml'}",
        f"--data={data}",
        "--eval_every=0",
    ]
    for folder, _ in train_rows(config, out, {name: []}, [*preset, *fewer_steps(config)]).values():
        if not config.steps:
            check(folder)
    flags = [
        f"--init_from={out / name}/{{seed}}",
        f"--data={data}",
        "--base_preset=",
        "--eval_every=0",
    ]
    return [*flags, *SETTINGS[data], max_steps(config)]


def train_miniatures(config, out, rows):
    """Rows of runs on the plain text, each from the base model of its seed: as train_rows."""
    return train_rows(config, out, rows, train_bases(config, out))


def over_training(folder, flags):
    """A thinking run at its beginning and at each checkpoint it kept: yields (step, model)."""
    settings = settings_from([f"--out={folder}", *flags])
    model = build_model(*settings, from_json(read_config(folder)["tokenizer"], folder)).eval()
    yield 0, model
    for path in reversed(checkpoints(folder)):
        state, model = torch.load(path, weights_only=True), copy.deepcopy(model)
        load_weights(model, state["model"], path)
        yield state["step"], model


def tokens_read(flags):
    """How many tokens a training step reads per token of text."""
    train, _, quiet, _ = settings_from(list(flags))
    share = 1 if train.think_at == "all" else train.think_share
    return read_per_token(quiet, share)

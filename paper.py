"""
Does it really think? A claim beside its controls, over several seeds, by one command. Runs are train.py's; what is
there already is not done again, so that a command that was stopped goes on when it is given again.

    python paper.py chatter      REINFORCE has work to do: half of what the base model says to itself is idle chatter

Logs, runs, a table (results.json) and a picture come into out/paper.
"""

import copy
import json
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from checkpoint import checkpoints, load_checkpoint, load_weights, read_config
from config import from_cli
from data.arithmetic.prepare import running_results
from data.dataset import open_dataset, replace_file
from data.tokenizer import from_json
from pictures import draw_over_training
from train import HERE, build_model, settings_from


@dataclass
class PaperConfig:
    out: str = "out/paper"  # folder of all runs, tables and pictures
    seeds: str = "1337,1,2"  # each row is trained with each of these
    jobs: int = os.cpu_count()  # runs at a time, one CPU thread each
    steps: int = 0  # optimizer steps of each run; 0: as its preset says (fewer only to try whether all works)

    def __post_init__(self):
        if not all(x.strip().isdigit() for x in self.seeds.split(",")):
            raise ValueError(f"seeds must be numbers with commas between them, not {self.seeds!r}")
        if self.jobs < 1 or self.steps < 0:
            raise ValueError("jobs must be at least 1, steps not negative")


# ----------------------------------------------------------------------------------------------------------------------
# runs


def script(name, *flags, log):
    """Run a script of this project on one thread; what it says goes to a file. Raises ValueError, in one line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "a", encoding="utf-8") as file:
        command = [sys.executable, str(HERE / name), *flags]
        done = subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        last = log.read_text("utf-8").strip().split("\n")[-1]
        raise ValueError(f"{name} ended with status {done.returncode} ({last}); see {log}")


def train_all(runs, jobs):
    """Train runs {folder: flags}, `jobs` at a time."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [
            pool.submit(script, "train.py", f"--out={folder}", *flags, log=folder.parent / f"{folder.name}.log")
            for folder, flags in runs.items()
        ]
        try:
            for future in tqdm(waiting, desc="training", unit="run", disable=None):
                future.result()
        except BaseException:  # Ctrl-C, say: those that run stop by themselves, and no other begins
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def over_training(folder, flags):
    """A thinking run at its beginning and at each checkpoint it kept: yields (step, model)."""
    settings = settings_from([f"--out={folder}", *flags])
    model = build_model(*settings, from_json(read_config(folder)["tokenizer"], folder)).eval()
    yield 0, model
    for path in reversed(checkpoints(folder, ".pt")):
        state, model = torch.load(path, weights_only=True), copy.deepcopy(model)
        load_weights(model, state["model"], path)
        yield state["step"], model


def over_seeds(values):
    """Mean and spread (standard deviation over seeds) of some numbers."""
    return {"mean": statistics.mean(values), "spread": statistics.stdev(values) if len(values) > 1 else 0.0}


def keep_results(out, name, results):
    """Put one command's results into results.json, beside those of the others."""
    path = out / "results.json"
    old = json.loads(path.read_text("utf-8")) if path.exists() else {}
    replace_file(path, json.dumps({**old, name: results}, indent=1).encode())


# ----------------------------------------------------------------------------------------------------------------------
# chatter: does REINFORCE choose the useful thoughts?

CHATTER = {
    "as in config/chatter.toml": [],
    "without REINFORCE": ["--reinforce_weight=0"],
    "reinforce_weight 1": ["--reinforce_weight=1"],
    "negative advantages dropped": ["--clamp_advantage"],
    "baseline: mean of all": ["--baseline=all"],
    "reward on the thought branch": ["--reward_on=thought"],
    "2 thoughts": ["--n_thoughts=2"],
    "8 thoughts": ["--n_thoughts=8"],
}


def quiet_questions(dataset, tokenizer, count=500, context=40):
    """The first quiet lines of a text, each with what stands before it: ids (count, context + 1) that end with "=" and
    the answer, and the steps that were left out, strings such as "0082"."""
    rows, steps, at = [], [], 0
    for line in tokenizer.decode(dataset.tokens.tolist()).split("\n")[:-1]:
        question, _, rest = line.partition("=")
        answer = at + len(question) + 1  # where it stands
        if len(rest) == 1 and answer >= context:
            rows.append(dataset.tokens[answer - context : answer + 1])
            steps.append("".join(map(str, running_results(question))))
        at += len(line) + 1
        if len(rows) == count:
            break
    return torch.from_numpy(np.stack(rows).astype(np.int64)), steps


@torch.no_grad()
def useful_thoughts(model, tokenizer, rows, steps, n_thoughts=4):
    """Thoughts sampled at temperature 1, right after "=": the share that is useful, that is, begins with just the steps
    that lead to the answer; the share after which the answer is the likeliest digit; the mean gate."""
    model = model.with_settings(n_thoughts=n_thoughts, n_true=1, thought_temperature=1.0)
    noise = torch.rand(len(rows), n_thoughts, 1, model.config.thought_len, generator=torch.Generator().manual_seed(0))
    thoughts = model.think(rows, positions=torch.full((len(rows), 1), rows.shape[1] - 2), noise=noise)
    h_mixed, gate = model.talk(thoughts)
    said = [[tokenizer.decode(thought[0].tolist()) for thought in row] for row in thoughts.tokens]
    useful = [
        thought.startswith(step[: len(thought)]) for row, step in zip(said, steps, strict=True) for thought in row
    ]
    digits = torch.tensor(tokenizer.encode("0123456789"))
    likeliest = digits[model.model.logits(h_mixed)[:, :, 0, 0, digits].argmax(-1)]  # (rows, n_thoughts)
    right = likeliest == rows[:, -1:]
    return {
        "useful_share": float(np.mean(useful)),
        "answer_accuracy": float(right.float().mean()),
        "gate": float(gate.mean()),
    }


def chatter(config, out):
    """Table and picture of the share of useful thoughts over training, for CHATTER's settings."""
    if not Path("data/chatter/meta.json").exists():
        script("data/arithmetic/prepare.py", "--out=data/chatter", "--chatter=0.5", log=out / "chatter.log")
    preset = [f"--config={HERE / 'config' / 'chatter.toml'}", "--save_every=50", "--keep=99", "--eval_every=0"]
    preset += [f"--max_steps={config.steps}"] if config.steps else []
    print("the base model comes first, once (config/chatter_base.toml)", flush=True)
    script("train.py", f"--config={HERE / 'config' / 'chatter_base.toml'}", log=out / "chatter_base.log")
    seeds = [int(seed) for seed in config.seeds.split(",")]
    runs = {
        (name, seed): (
            out / "chatter" / f"{re.sub('[^a-zA-Z0-9]+', '_', name)}_{seed}",
            [*preset, *flags, f"--seed={seed}"],
        )
        for name, flags in CHATTER.items()
        for seed in seeds
    }
    train_all(dict(runs.values()), config.jobs)

    dataset = open_dataset("data/chatter", "val")
    tokenizer = from_json(dataset.meta["tokenizer"], "data/chatter")
    rows, steps = quiet_questions(dataset, tokenizer)
    found = {}
    for key, (folder, flags) in tqdm(runs.items(), desc="measuring", unit="run", disable=None):
        path, last = folder / "useful_thoughts.json", load_checkpoint(folder)["step"]
        if not path.exists() or json.loads(path.read_text("utf-8"))[-1][0] != last:
            points = [
                (step, useful_thoughts(model, tokenizer, rows, steps)) for step, model in over_training(folder, flags)
            ]
            replace_file(path, json.dumps(points, indent=1).encode())
        found[key] = json.loads(path.read_text("utf-8"))

    results, curves = {"useful_share": {}, "rows": {}}, {}
    print(f"\n{len(rows)} quiet lines, 4 thoughts each at temperature 1; mean and spread over seeds {config.seeds}\n")
    print(f"{'':30}{'useful at start':>18}{'at end':>18}{'answers right':>18}{'gate':>18}")
    for name in CHATTER:
        of_seeds = [found[name, seed] for seed in seeds]
        start = over_seeds([points[0][1]["useful_share"] for points in of_seeds])
        end = {what: over_seeds([points[-1][1][what] for points in of_seeds]) for what in of_seeds[0][0][1]}
        results["rows"][name] = {"useful_share_at_start": start, **end, "flags": CHATTER[name]}
        shares = [{step: measured["useful_share"] for step, measured in points} for points in of_seeds]
        looked = sorted(set.intersection(*map(set, shares)))  # a run that was stopped has a checkpoint of its own
        curves[name] = looked, np.array([[share[step] for step in looked] for share in shares])
        cells = [start, end["useful_share"], end["answer_accuracy"], end["gate"]]
        print(f"{name:30}" + "".join(f"{x['mean']:>10.3f} ± {x['spread']:.3f}" for x in cells))
    first = results["rows"]["as in config/chatter.toml"]
    without = results["rows"]["without REINFORCE"]["useful_share"]
    ends = {"start": first["useful_share_at_start"], "end": first["useful_share"], "end_without_reinforce": without}
    results["useful_share"] = ends
    keep_results(out, "chatter", results)
    draw_over_training(curves, "share of useful thoughts", out / "chatter.png")
    print(f"\ntable: {out / 'results.json'}   picture: {out / 'chatter.png'}")


COMMANDS = {"chatter": chatter}


def main():
    arguments = sys.argv[1:]
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    config, _ = from_cli(__doc__, PaperConfig, argv=arguments)
    if command not in COMMANDS:
        sys.exit(f"paper.py: error: {command!r} is not one of {', '.join(COMMANDS)} (--help says more)")
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        COMMANDS[command](config, out)
    except (ValueError, OSError) as error:
        sys.exit(f"paper.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: run the same command again to go on")


if __name__ == "__main__":
    main()

"""
A real model, a real text: SmolLM2-135M learns to think on GSM8K's solutions, half of whose calculations are left out
(data/gsm8k_steps). Do thoughts help it where a number stands whose calculation is left out? Needs a GPU.

    python data/smollm2/prepare.py && python data/gsm8k_steps/prepare.py && python data/gsm8k/prepare.py
    python -m studies.gsm8k_steps

Counted are the numbers of the test set whose calculations are left out: the NLL of the whole number, and whether it is
written exactly (every token the likeliest of those that a number can hold, and no digit behind it). A thought is
thought once, before the number, and all tokens of the number are read after it. That the text might write the
calculation here is left out of all predictions: at the first token, "<<" is no choice.
"""

import multiprocessing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from data.dataset import open_dataset
from lib.asking import candidate
from lib.config import run_script
from lib.files import kept, read_json, write_json
from lib.parallel import pick_device
from lib.pictures import draw_bars, mean_and_error
from lib.questions import QuestionsConfig, ask_gsm8k, load_questions
from lib.runs import load_run
from quiet_star import QuietSTaR
from studies.numbers import arithmetic, compare, other_tokens, read_numbers, texts_of
from studies.runs import StudyConfig, train_all, train_rows
from studies.tables import over_seeds, print_rows, remembered
from train import HERE

DATA = "data/gsm8k_steps"


@dataclass
class StepsConfig(StudyConfig):
    out: str = "out/gsm8k_steps_study"  # folder of all runs, tables and pictures
    jobs: int = 4  # runs at a time on the GPU
    texts: int = 64  # held-out spans on which other tokens are measured
    questions: int = 200  # questions of GSM8K that are asked; 0: all
    base_steps: int = 0  # optimizer steps of the base model; 0: as its preset says
    split: Literal["val", "dev"] = "val"  # held-out solutions to measure on: the test set, or some of the training set
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one


ROWS = {
    "lm": ["--objective=lm"],
    "pause": ["--thought_len=0"],
    "random thoughts": ["--thought_temperature=1e9", "--reinforce_weight=0"],
    "without REINFORCE": ["--reinforce_weight=0"],
    "quiet_star": [],
}


def measure_run(config, folder, ways=(), tau=1.0, name="scores"):
    """What the tables say of one run, kept beside it: {"nll", "exact", "right", ...} by the way it thinks."""
    return remembered(folder, name, partial(measured, config, folder, ways, tau), split=config.split, tau=tau)


def measured(config, folder, ways, tau):
    device, dataset = pick_device(config.device), open_dataset(DATA, config.split)
    model, tokenizer, _, _ = load_run(folder, device)
    texts, steps = texts_of(dataset), read_json(Path(DATA) / "steps.json")[config.split]
    job = texts, dataset.meta["answers"]["among"], tokenizer.encode("<<")[0]
    read = partial(read_numbers, model, *job)
    if not isinstance(model, QuietSTaR):
        found = {"own": read(tau=tau)}
    else:
        found = {"own": read()}
        others = np.roll(found["own"]["thoughts"], 1, axis=0)
        more = {
            "another position's": partial(read, thoughts=others),
            "left out": partial(read_numbers, model.model, *job),
            "sampled": partial(read, temperature=1.0),
            "8 averaged": partial(read, temperature=1.0, n_thoughts=8, batch=4),
        }
        found |= {name: more[name]() for name in ways}
    numbers = [tokenizer.decode(text.ids[a : a + n].tolist()) for text in texts for a, n in text.numbers]
    results = {}
    for way, x in found.items():
        results[way] = {"nll": x["nll"].tolist(), "exact": x["exact"].astype(float).tolist()}
        if "thoughts" in x and x["thoughts"].shape[-1]:
            said = [tokenizer.decode(thoughts[0].tolist()) for thoughts in x["thoughts"]]
            judged = np.array([arithmetic(*each) for each in zip(said, steps, numbers, strict=True)], float)
            results[way] |= {
                "gate": float(x["gate"].mean()),
                "says": said,
                **dict(zip(SAYS, judged.mean(0), strict=True)),
            }
    if tau == 1:
        results["own"]["other_nll"] = other_tokens(model, dataset, job[2], config.texts)
        questions = load_questions("gsm8k", "data/gsm8k", config.questions)
        asked = QuestionsConfig(batch_size=100), device, folder.name
        scores = ask_gsm8k(candidate(model, isinstance(model, QuietSTaR)), questions, tokenizer, *asked)
        results["own"] |= {name: mean_and_error([x[name] for x in scores])[0] for name in ("soft", "greedy")}
    return results


SAYS = ("calculates", "right", "right_operands", "right_result")  # shares of thoughts: see `arithmetic`


def fit_temperature(config, folder):
    """The temperature at which a model without thoughts predicts the numbers of the other held-out text best."""
    dataset = open_dataset(DATA, "dev" if config.split == "val" else "val")
    model, tokenizer, _, _ = load_run(folder, pick_device(config.device))
    texts, mark = texts_of(dataset), tokenizer.encode("<<")[0]
    candidates = [round(0.7 + 0.1 * n, 1) for n in range(14)]
    job = texts, dataset.meta["answers"]["among"], mark
    return min(candidates, key=lambda tau: read_numbers(model, *job, tau=tau)["nll"].mean())


def gsm8k_steps(config):
    """Train what is missing, measure all, print the tables."""
    out = Path(config.out) / f"{config.steps}_steps" if config.steps else Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    device, base = f"--device={config.device}", out / "base"
    steps = [f"--max_steps={config.steps}", f"--save_every={config.steps}"] if config.steps else []
    train_all({base: [f"--config={HERE / 'config' / 'gsm8k_steps_base.toml'}", device, *steps]}, 1)
    preset = [
        f"--config={HERE / 'config' / 'gsm8k_steps.toml'}",
        f"--init_from={base}",
        "--base_preset=",
        device,
        *steps,
    ]
    runs = train_rows(config, out, ROWS, preset)

    print("fitting the temperature of the tempered base", flush=True)
    tau = kept(out / "temperature.json", {"split": config.split}, partial(fit_temperature, config, base))
    jobs = {("base", 0): (config, base), ("tempered base", 0): (config, base, (), tau, "tempered")}
    ways = {
        "quiet_star": ("another position's", "left out", "sampled", "8 averaged"),
        "without REINFORCE": ("left out",),
    }
    jobs |= {key: (config, folder, ways.get(key[0], ())) for key, (folder, _) in runs.items()}
    with multiprocessing.get_context("spawn").Pool(config.jobs) as pool:
        waiting = {key: pool.apply_async(measure_run, job) for key, job in jobs.items()}
        found = {key: x.get() for key, x in tqdm(waiting.items(), desc="measuring", unit="run", disable=None)}
    report(config, out, found, tau)


def report(config, out, found, tau):
    """Tables, picture and results.json of what was found: {(row, seed): {way: numbers}}."""
    rows = {}  # {row: {seed: numbers}}
    for (row, seed), by_way in found.items():
        for way, numbers in by_way.items():
            rows.setdefault(row if way == "own" else f"{row}: {way}", {})[seed] = numbers
    texts = texts_of(open_dataset(DATA, config.split))
    documents = np.repeat(np.arange(len(texts)), [len(text.numbers) for text in texts])
    columns = ("nll", "exact", "other_nll", "soft", "greedy", "gate", *SAYS)
    table, mean = {}, {}
    for row, seeds in rows.items():
        each = [{c: float(np.mean(x[c])) for c in columns if c in x} for x in seeds.values()]
        table[row] = over_seeds(each)
        mean[row] = {c: np.mean([x[c] for x in seeds.values()], axis=0) for c in ("nll", "exact")}
    title = f"{len(documents):,} numbers whose calculations are left out ({config.split}); seeds {config.seeds}"
    print_rows(
        f"{title}; temperature of the tempered base {tau}",
        table,
        [c for c in columns if any(c in r for r in table.values())],
    )
    print("\nquiet_star minus the other, number by number: mean [95 % interval], p")
    intervals = {}
    for row in mean:
        if row != "quiet_star":
            intervals[row] = {c: compare(mean[row][c], mean["quiet_star"][c], documents) for c in ("nll", "exact")}
            cells = (
                f"{c} {d['mean']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}] p {d['p']:.1e}"
                for c, d in intervals[row].items()
            )
            print(f"{row:36}" + "   ".join(cells))
    write_json(
        out / "results.json",
        {
            "numbers": table,
            "quiet_star_minus": intervals,
            "temperature": tau,
            "seeds": config.seeds,
            "split": config.split,
        },
    )
    draw_bars(table, "exact", "share of numbers written exactly", out / "gsm8k_steps.png", title)
    print(f"\ntable: {out / 'results.json'}   picture: {out / 'gsm8k_steps.png'}")


if __name__ == "__main__":
    run_script("gsm8k_steps", __doc__, gsm8k_steps, StepsConfig)

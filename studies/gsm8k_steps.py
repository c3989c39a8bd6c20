"""
A real model, a real text: SmolLM2-135M learns to think on GSM8K's solutions, half of whose calculations are left out
(data/gsm8k_steps). Do thoughts help it where a number stands whose calculation is left out?

    python data/smollm2/prepare.py && python data/gsm8k_steps/prepare.py && python data/gsm8k/prepare.py
    python -m studies.gsm8k_steps

Counted are the numbers of the test set whose calculations are left out: the NLL of the whole number, and whether it is
written exactly (every token the likeliest of those that a number can hold, and no digit behind it). A thought is
thought once, before the number, and all tokens of the number are read after it. That the text might write the
calculation here is left out of all predictions: at the first token, "<<" is no choice.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from beyond.adaptive import says_start
from data.dataset import open_dataset
from lib.asking import candidate
from lib.config import run_script
from lib.files import compute_once, read_json, refuse_another, write_json
from lib.parallel import pick_device
from lib.pictures import draw_bars, mean_and_error
from lib.questions import QuestionsConfig, ask_gsm8k, load_questions
from lib.runs import load_run
from quiet_star import QuietSTaR
from studies.numbers import THINK_ABOVE, arithmetic, compare, other_tokens, read_numbers, texts_of
from studies.runs import StudyConfig, train_all, train_rows
from studies.tables import over_seeds, print_rows, remembered
from train import HERE

DATA = "data/gsm8k_steps"
RANDOM = 1e9  # a temperature of thoughts: any token is as likely as any other


@dataclass
class StepsConfig(StudyConfig):
    out: str = "out/gsm8k_steps_study"  # folder of all runs, tables and pictures
    rows: str = (
        "quiet_star,lm,pause,without REINFORCE,random thoughts"  # what is trained and measured
    )
    split: Literal["val", "dev"] = (
        "val"  # held-out solutions to measure on: the test set, or some of the training set
    )
    documents: int = 500  # how many of them, from the first; 0: all
    texts: int = 64  # held-out spans on which other tokens are measured
    questions: int = 100  # questions of GSM8K that are asked; 0: all
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one

    def __post_init__(self):
        super().__post_init__()
        if unknown := [row for row in self.rows.split(",") if row not in ROWS]:
            raise ValueError(f"there is no row {unknown[0]!r}: they are {', '.join(ROWS)}")


ROWS = {
    "quiet_star": [],
    "lm": [
        "--objective=lm",
        "--lr=5e-5",
        "--max_steps=50",
    ],  # at the learning rate that suits it, and for longer
    "pause": ["--thought_len=0"],
    "without REINFORCE": ["--reinforce_weight=0"],
    "random thoughts": [f"--thought_temperature={RANDOM}", "--reinforce_weight=0"],
}
# What a run is asked besides its own thoughts: in evaluation it reads others', none, samples, or many.
WAYS = {
    "quiet_star": ("another position's", "left out", "sampled", "4 averaged"),
    "without REINFORCE": ("left out",),
}
SAYS = (
    "calculates",
    "right",
    "right_operands",
    "right_result",
)  # shares of thoughts: see numbers.arithmetic
COLUMNS = ("nll", "exact", "other_nll", "soft", "greedy", "gate", "thinks", *SAYS)


def held_out_numbers(config, split, tokenizer):
    """What `read_numbers` asks for: texts, the ids that a number can hold, the id of "<<"."""
    dataset = open_dataset(DATA, split)
    return (
        texts_of(dataset)[: config.documents or None],
        dataset.meta["answers"]["among"],
        tokenizer.encode("<<")[0],
    )


def measured(config, folder, ways, tau):
    """What the tables say of one run: {way of thinking: {"nll" and "exact", lists by number; shares}}."""
    device = pick_device(config.device)
    model, tokenizer, _, _ = load_run(folder, device)
    job = held_out_numbers(config, config.split, tokenizer)
    read, thinks = partial(read_numbers, model, *job), isinstance(model, QuietSTaR)
    random = thinks and model.config.thought_temperature == RANDOM
    found = {"": read(tau=tau, temperature=RANDOM if random else 0.0)}
    further = {
        "another position's": lambda: read(thoughts=np.roll(found[""]["thoughts"], 1, axis=0)),
        "left out": lambda: read_numbers(model.model, *job),
        "sampled": lambda: read(temperature=1.0),
        "4 averaged": lambda: read(temperature=1.0, n_thoughts=4, batch=4),
    }
    found |= {way: further[way]() for way in ways}
    steps = read_json(Path(DATA) / "steps.json")[config.split]
    numbers = [
        tokenizer.decode(text.ids[a : a + n].tolist()) for text in job[0] for a, n in text.numbers
    ]
    results = {}
    for way, x in found.items():
        results[way] = {"nll": x["nll"].tolist(), "exact": x["exact"].astype(float).tolist()}
        if "thoughts" in x:
            said = [tokenizer.decode(thoughts[0].tolist()) for thoughts in x["thoughts"]]
            judged = [arithmetic(*each) for each in zip(said, steps, numbers, strict=False)]
            shares = zip(
                ("gate", "thinks", *SAYS),
                (x["gate"], x["thinks"], *np.transpose(judged)),
                strict=True,
            )
            results[way] |= {"said": said, **{name: float(share.mean()) for name, share in shares}}
    if tau == 1:
        how_long = says_start(model, job[2], THINK_ABOVE) if thinks else None
        results[""]["other_nll"] = other_tokens(
            model, open_dataset(DATA, config.split), job[2], config.texts
        )
        questions = load_questions("gsm8k", "data/gsm8k", config.questions)
        asked = QuestionsConfig(batch_size=50), folder.name
        scores = ask_gsm8k(
            candidate(model, thinks, how_long=how_long), questions, tokenizer, *asked
        )
        results[""] |= {
            name: mean_and_error([x[name] for x in scores])[0] for name in ("soft", "greedy")
        }
    return results


def best_temperature(config, folder):
    """That at which a model without thoughts best predicts the numbers of the held-out text that is not measured."""
    model, tokenizer, _, _ = load_run(folder, pick_device(config.device))
    job = held_out_numbers(config, "dev" if config.split == "val" else "val", tokenizer)
    temperatures = (0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5)
    return min(temperatures, key=lambda tau: read_numbers(model, *job, tau=tau)["nll"].mean())


def gsm8k_steps(config):
    """Train what is missing, measure all, print the tables."""
    out = Path(config.out) / f"{config.steps}_steps" if config.steps else Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    asked = {
        x: getattr(config, x) for x in ("seeds", "rows", "split", "documents", "texts", "questions")
    }
    refuse_another(out / "results.json", asked)
    device, base = f"--device={config.device}", out / "base"
    steps = [f"--max_steps={config.steps}"] if config.steps else []
    presets = [
        f"--config={HERE / 'config' / name}.toml" for name in ("gsm8k_steps_base", "gsm8k_steps")
    ]
    train_all({base: [presets[0], device, *steps]}, 1)
    flags = [presets[1], f"--init_from={base}", "--base_preset=", device, *steps]
    runs = train_rows(config, out, {row: ROWS[row] for row in config.rows.split(",")}, flags)

    about = {"split": config.split, "documents": config.documents}
    tau = compute_once(out / "temperature.json", about, partial(best_temperature, config, base))
    about |= {"texts": config.texts, "questions": config.questions}
    jobs = {("base", 0): (base, "scores", (), 1.0), ("tempered", 0): (base, "tempered", (), tau)}
    jobs |= {
        (row, seed): (folder, "scores", WAYS.get(row, ()), 1.0)
        for (row, seed), (folder, _) in runs.items()
    }
    rows = {}  # {row: [what was found, by seed]}
    for (row, _), (folder, name, ways, its_tau) in tqdm(
        jobs.items(), desc="measuring", unit="run", disable=None
    ):
        make = partial(measured, config, folder, ways, its_tau)
        for way, found in remembered(
            folder, name, make, **about, tau=its_tau, ways=list(ways)
        ).items():
            rows.setdefault(f"{row}, {way}" if way else row, []).append(found)
    report(config, out, rows, tau, asked)


def report(config, out, rows, tau, asked):
    """Tables, picture and results.json of rows {name: [what was found, by seed]}."""
    texts = texts_of(open_dataset(DATA, config.split))[: config.documents or None]
    documents = np.repeat(np.arange(len(texts)), [len(text.numbers) for text in texts])
    table, minus = {}, {}
    for row, seeds in rows.items():
        table[row] = over_seeds(
            [{c: float(np.mean(x[c])) for c in COLUMNS if c in x} for x in seeds]
        )
    title = f"{len(documents):,} numbers whose calculations are left out"
    print_rows(
        f"{title} ({config.split}); seeds {config.seeds}; temperature of tempered: {tau}",
        table,
        COLUMNS,
    )
    print("\nquiet_star minus each other, on the same numbers: mean [95 % interval], p")
    by_number = {
        (row, c): np.mean([x[c] for x in seeds], axis=0)
        for row, seeds in rows.items()
        for c in ("nll", "exact")
    }
    for row in (row for row in rows if row != "quiet_star"):
        minus[row] = {
            c: compare(by_number[row, c], by_number["quiet_star", c], documents)
            for c in ("nll", "exact")
        }
        cells = [
            f"{c} {x['mean']:+.3f} [{x['low']:+.3f}, {x['high']:+.3f}] {x['p']:.0e}"
            for c, x in minus[row].items()
        ]
        print(f"{row:32}" + "   ".join(cells))
    results = {"numbers": table, "quiet_star_minus": minus, "temperature": tau, "asked": asked}
    write_json(out / "results.json", results)
    draw_bars(table, "exact", "share of numbers written exactly", out / "gsm8k_steps.png", title)
    print(f"\ntable: {out / 'results.json'}   picture: {out / 'gsm8k_steps.png'}")


def main(argv=None):
    run_script("gsm8k_steps", __doc__, gsm8k_steps, StepsConfig, argv=argv)


if __name__ == "__main__":
    main()

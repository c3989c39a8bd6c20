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

import ast
import math
import multiprocessing
import operator
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

from data.dataset import open_dataset
from eval import held_out_spans, measure, predicted
from lean.tensors import take
from lib.asking import candidate
from lib.config import run_script
from lib.files import kept, read_json, write_json
from lib.parallel import pick_device
from lib.pictures import draw_bars, mean_and_error
from lib.questions import QuestionsConfig, ask_gsm8k, load_questions
from lib.runs import load_run
from quiet_star import QuietSTaR
from studies.runs import StudyConfig, train_all, train_rows
from studies.tables import over_seeds, print_rows, remembered
from train import HERE

DATA = "data/gsm8k_steps"


@dataclass
class Text:
    """One solution: ids (n,), and its numbers, (where it begins, how many tokens) each."""

    ids: np.ndarray
    numbers: list


def texts_of(dataset):
    """The documents of a split whose numbers are marked."""
    ends = np.flatnonzero(dataset.tokens == dataset.meta["document_end"]) + 1
    texts = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        edges = np.flatnonzero(np.diff(np.pad(dataset.answers[start:end], 1).astype(np.int8)))
        pairs = edges.reshape(-1, 2)
        texts.append(Text(dataset.tokens[start:end].astype(np.int64), [(a, b - a) for a, b in pairs.tolist()]))
    return texts


@torch.no_grad()
def read_numbers(model, texts, among, mark, thoughts=None, n_thoughts=1, temperature=0.0, tau=1.0, batch=16):
    """Predict every number of texts: dict of arrays by number, in their order: nll (nats), exact, and of a model that
    thinks gate (n,) and thoughts (n, N, m).

    among, mark   ids that a number can hold, the id of "<<"
    thoughts      to read instead of sampling, (n, N, m);  n_thoughts: how many to average the prediction over
    temperature   of thoughts;  tau: of the prediction
    """
    device, thinks = next(model.parameters()).device, isinstance(model, QuietSTaR)
    plain = model.model if thinks else model
    a = 1 + max(n for text in texts for _, n in text.numbers)  # the number, and what stands behind it
    number_of = np.cumsum([0, *(len(text.numbers) for text in texts)])
    longest_first = sorted((i for i, text in enumerate(texts) if text.numbers), key=lambda i: -len(texts[i].ids))
    among, generator = torch.as_tensor(among, device=device), torch.Generator(device).manual_seed(0)
    found = {}
    for start in tqdm(range(0, len(longest_first), batch), desc="numbers", leave=False, disable=None):
        some = longest_first[start : start + batch]
        B, S = len(some), max(len(texts[i].numbers) for i in some)
        tokens = np.zeros((B, len(texts[some[0]].ids) + a), np.int64)
        index, first, size = np.full((B, S), -1), np.ones((B, S), np.int64), np.ones((B, S), np.int64)
        for row, i in enumerate(some):
            count = len(texts[i].numbers)
            tokens[row, : len(texts[i].ids)] = texts[i].ids
            index[row, :count] = np.arange(number_of[i], number_of[i + 1])
            first[row, :count], size[row, :count] = np.array(texts[i].numbers).T
        real = torch.from_numpy(index >= 0).to(device)
        tokens, positions, size = (torch.from_numpy(x).to(device) for x in (tokens, first - 1, size))
        size = size[real]  # (R,) by number
        ahead = positions[:, :, None] + torch.arange(1, a + 1, device=device)  # (B, S, a)
        target = take(tokens, ahead)[real]  # (R, a)
        new = {}
        if thinks:
            quiet = model.with_settings(n_thoughts=n_thoughts, n_true=a, thought_temperature=temperature)
            noise = torch.rand(B, n_thoughts, S, quiet.config.thought_len, device=device, generator=generator)
            given = None if thoughts is None else torch.from_numpy(thoughts[index]).transpose(1, 2).to(device)
            thought = quiet.think(tokens, given, positions, None if thoughts is not None else noise)
            h, gate = quiet.talk(thought.h_base, thought.h_thought)  # (B, N, S, a, C), (B, N, S, a)
            new = {"gate": gate[..., 0].mean(1)[real], "thoughts": thought.tokens.transpose(1, 2)[real]}
        else:
            h = take(plain(tokens), ahead - 1)[:, None]
        log_p = []
        for states in h.transpose(1, 2)[real].split(32):  # (R, N, a, C)
            logits = plain.logits(states).float() / tau
            logits[:, :, 0, mark] = -math.inf
            log_p.append(logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1]))  # (R, a, V)
        log_p = torch.cat(log_p)
        inside = torch.arange(a, device=device) < size[:, None]
        new["nll"] = -log_p.gather(-1, target[..., None])[..., 0].where(inside, 0).sum(-1)
        said = among[log_p[..., among].argmax(-1)] == target
        behind = torch.isin(log_p.argmax(-1).gather(1, size[:, None])[:, 0], among)  # the number would go on
        new["exact"] = (said | ~inside).all(-1) & ~behind
        for name, value in new.items():
            found.setdefault(name, []).append(value.cpu().numpy())
        found.setdefault("index", []).append(index[index >= 0])
    order = np.argsort(np.concatenate(found.pop("index")))
    return {name: np.concatenate(values)[order] for name, values in found.items()}


# ----------------------------------------------------------------------------------------------------------------------
# what a thought says, and whether one model is better than another


def arithmetic(thought, calculation, number):
    """Of a thought's text: does it calculate, is that right, are the operands the text's, is the result? Four bools.
    calculation: "48/2=24", as the text's author has it; number: "24", as it is in the text."""
    said = re.match(r"([\d.+\-*/()]+)=(-?[\d.]+)", thought.replace(",", ""))
    if not said:
        return False, False, False, False
    asked = calculation.replace(",", "").split("=")[0]
    operands = [sorted(re.findall(r"[\d.]+", x)) for x in (said[1], asked)]
    result = number_of(said[2])
    return True, close(value_of(said[1]), result), operands[0] == operands[1], close(result, number_of(number))


def number_of(text):
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return math.nan


def close(x, y):
    return abs(x - y) < 0.006 * max(1.0, abs(y) ** 0.5)  # authors round, to cents say


def value_of(expression):
    """The value of digits, + - * / and parentheses; nan if it has none."""
    try:
        return float(calculate(ast.parse(expression, mode="eval").body))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, TypeError):
        return math.nan


OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def calculate(node):
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](calculate(node.left), calculate(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -calculate(node.operand)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    raise ValueError("no arithmetic")


def compare(a, b, documents):
    """The mean of b - a over numbers, its 95 % interval, and p (two-sided) against no difference. Numbers of one
    document go together: the standard error is that of independent documents."""
    difference = np.asarray(b, float) - np.asarray(a, float)
    mean = difference.mean()
    by_document = np.bincount(documents, difference - mean)
    error = float((by_document**2).sum() ** 0.5 / len(difference))
    p = math.erfc(abs(mean) / error / 2**0.5) if error else 1.0
    return {"mean": float(mean), "low": float(mean - 1.96 * error), "high": float(mean + 1.96 * error), "p": p}


# ----------------------------------------------------------------------------------------------------------------------
# the protocol


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
        spans, answers = held_out_spans(dataset, 256, config.texts)
        nll, _ = predicted(measure(model, spans, dataset.meta, device, 8, "other tokens"))
        results["own"]["other_nll"] = float(nll[~answers].mean())
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

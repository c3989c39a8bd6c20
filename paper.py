"""
Does it really think? A claim beside its controls, over several seeds, by one command. Runs are train.py's; what is
there already is not done again, so that a command that was stopped goes on when it is given again.

    python paper.py              everything below (`make paper`)
    python paper.py controls     is it the thought, or the computation, or the further training?
    python paper.py chatter      REINFORCE has work to do: half of what the base model says to itself is idle chatter
    python paper.py thought_len  how long must a thought be, in training and afterwards?
    python paper.py who          which tokens gain; do answers follow what the thoughts say?
    python paper.py ablations    n_true and n_thoughts
    python paper.py curriculum   ever shorter thoughts in training, and none in the end: what stays?
    python paper.py cups         the same on a second kind of text
    python paper.py adaptive     thinking only where it is expected to pay

Logs, runs, a table (results.json) and a picture of each come into out/paper.
"""

import copy
import json
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from bench import seconds_per_token
from checkpoint import checkpoints, load_checkpoint, load_run, load_weights, read_config
from config import from_cli
from data.arithmetic.prepare import running_results
from data.dataset import open_dataset, replace_file
from data.tokenizer import from_json
from eval import answer_places, measure, predicted, spread_spans, summarize
from pictures import draw_bars, draw_lines, draw_over_training, draw_who
from quiet_star import entropy
from train import HERE, build_model, settings_from


@dataclass
class PaperConfig:
    out: str = "out/paper"  # folder of all runs, tables and pictures
    seeds: str = "1337,1,2"  # each row is trained with each of these, from base models of their own (chatter: from one)
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
            pool.submit(
                script, "train.py", f"--out={folder}", "--device=cpu", *flags, log=folder.parent / f"{folder.name}.log"
            )
            for folder, flags in runs.items()
        ]
        try:
            for future in tqdm(waiting, desc="training", unit="run", disable=None):
                future.result()
        except BaseException:  # Ctrl-C, say: those that run stop by themselves, and no other begins
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def train_rows(config, out, rows, preset):
    """Train each row {name: flags} with each seed: {(name, seed): (folder, flags)}. A folder is out/name/seed, and
    {seed} in a flag is the seed."""
    runs = {
        (name, seed): (
            out / re.sub("[^a-zA-Z0-9]+", "_", name) / str(seed),
            [flag.replace("{seed}", str(seed)) for flag in [*preset, *flags, "--seed={seed}"]],
        )
        for name, flags in rows.items()
        for seed in config.all_seeds()
    }
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


# Training thinks at a quarter of the positions, drawn by the base model's entropy: a third of the time, and nearly the
# accuracy of thinking everywhere in training (which is a row of the controls).
HARD = "--think_at=hard"


def train_bases(config, out):
    """The miniature's base models, in out/base/seed: the flags of runs that start from them."""
    prepare("data/arithmetic", "data/arithmetic/prepare.py", out)
    base = [f"--config={HERE / 'config' / 'arithmetic_base.toml'}", "--eval_every=0"]
    train_rows(config, out, {"base": []}, [*base, *fewer_steps(config)])
    return [f"--init_from={out / 'base'}/{{seed}}", "--base_preset=", "--eval_every=0", HARD, max_steps(config)]


def train_miniatures(config, out, rows):
    """Rows of runs on the miniature, each from the base model of its seed: as train_rows."""
    return train_rows(config, out, rows, train_bases(config, out))


def over_training(folder, flags):
    """A thinking run at its beginning and at each checkpoint it kept: yields (step, model)."""
    settings = settings_from([f"--out={folder}", *flags])
    model = build_model(*settings, from_json(read_config(folder)["tokenizer"], folder)).eval()
    yield 0, model
    for path in reversed(checkpoints(folder, ".pt")):
        state, model = torch.load(path, weights_only=True), copy.deepcopy(model)
        load_weights(model, state["model"], path)
        yield state["step"], model


# ----------------------------------------------------------------------------------------------------------------------
# measuring, tables


def remembered(folder, name, make, **about):
    """make() of a run, from folder/name.json where it was made before: at the same step and about the same."""
    path, about = folder / f"{name}.json", {"step": load_checkpoint(folder)["step"], **about}
    old = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if {key: old.get(key) for key in about} != about:
        old = {**about, "value": make()}
        replace_file(path, json.dumps(old, indent=1).encode())
    return old["value"]


def held_out(config, data="data/arithmetic"):
    """Held-out spans (W, T+1), where they have answers (W, T), the dataset's meta."""
    dataset = open_dataset(data, "val")
    spans = spread_spans(dataset.tokens, 64, config.texts)
    return spans, answer_places(spans, dataset.meta), dataset.meta


SCORES = ("answer_accuracy", "answer_nll", "other_nll")


def scores(found, answers):
    """Of what eval.measure found: answers after a thought (if the model thinks), and without."""
    row = summarize(*predicted(found), answers)
    return {
        **{name: row[name] for name in SCORES},
        "accuracy_without_thoughts": float(found.right_base[answers].mean()),
    }


def scores_of(config, folder, text, name="scores", settings=None, **how):
    """Scores of a row of runs, over seeds, on a text that `held_out` gave: their models with other settings, measured
    as how says (a function in it is asked for each model)."""
    spans, answers, meta = text

    def make(run):
        model = load_run(run, "cpu")[0]
        model = model.with_settings(**settings) if settings else model
        found = measure(model, spans, meta, **{k: x(model) if callable(x) else x for k, x in how.items()})
        return scores(found, answers)

    runs = [folder / str(seed) for seed in config.all_seeds()]
    return over_seeds([remembered(run, name, partial(make, run), texts=len(spans)) for run in runs])


def over_seeds(values):
    """Mean and spread (standard deviation over seeds) of some numbers, or of each number in dicts or lists of them.
    None is no number (no seed had such a case), and left out."""
    if isinstance(values[0], dict):
        return {key: over_seeds([x[key] for x in values]) for key in values[0]}
    if isinstance(values[0], list):
        return [over_seeds(list(column)) for column in zip(*values, strict=True)]
    values = [x for x in values if x is not None]
    if not values:
        return None
    return {"mean": statistics.mean(values), "spread": statistics.stdev(values) if len(values) > 1 else 0.0}


def print_rows(title, rows, columns):
    """A table of rows {name: {column: mean and spread, or a number}}."""
    width, widths = max(map(len, rows)), [max(17, len(column) + 2) for column in columns]
    print(f"\n{title}\n\n{'':{width}}" + "".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True)))
    for name, row in rows.items():
        cells = ["" if row.get(column) is None else row[column] for column in columns]
        cells = [f"{x['mean']:.3f} ± {x['spread']:.3f}" if isinstance(x, dict) else x for x in cells]
        print(f"{name:{width}}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True)))


def keep_results(out, name, results):
    """Put one command's results into results.json, beside those of the others."""
    path = out / "results.json"
    old = json.loads(path.read_text("utf-8")) if path.exists() else {}
    replace_file(path, json.dumps({**old, name: results}, indent=1).encode())


# ----------------------------------------------------------------------------------------------------------------------
# controls: is it the thought?


def tokens_read(flags):
    """How many tokens a training step reads per token of text."""
    train, _, quiet, _ = settings_from(list(flags))
    share = 1 if train.think_at == "all" else train.think_share
    return 1 + share * quiet.n_thoughts * quiet.steps


def of_other_positions(thoughts, answers, seed=0):
    """Thoughts (W, T, m), each at another position: those at answers change places among themselves, so that each is a
    thought about a question, only not about this one; and so do those elsewhere."""
    moved, rng = thoughts.copy(), np.random.default_rng(seed)
    for some in (answers, ~answers):
        places = rng.permutation(np.argwhere(some))
        moved[tuple(places.T)] = thoughts[tuple(np.roll(places, 1, axis=0).T)]
    return moved


def controls(config, out):
    """The table of controls, and a picture of it."""
    compute = round(tokens_read([HARD]))
    train_miniatures(
        config,
        out,
        {
            "full": [],
            "lm_same_tokens": ["--objective=lm"],
            "lm_same_compute": ["--objective=lm", max_steps(config, times=compute)],
            "pause": ["--thought_len=0"],
            "trained_on_random_thoughts": ["--thought_temperature=1e9", "--reinforce_weight=0"],
            "reinforce_weight_0": ["--reinforce_weight=0"],
            "full_everywhere": ["--think_at=all"],
        },
    )
    text = held_out(config)
    spans, answers, meta = text

    def random(tokens):
        return lambda model: np.random.default_rng(0).choice(tokens, (*answers.shape, model.config.thought_len))

    def others(model):
        return of_other_positions(measure(model, spans, meta).thoughts, answers)

    measured = {  # run, name of its scores, how it is measured
        "base": ("base", "scores", {}),
        "lm_same_tokens": ("lm_same_tokens", "scores", {}),
        "lm_same_compute": ("lm_same_compute", "scores", {}),
        "pause": ("pause", "scores", {}),
        "trained_on_random_thoughts": (
            "trained_on_random_thoughts",
            "scores",
            {"thoughts": random(meta["vocab_size"])},
        ),
        # of tokens that it has read: others would be strange to it
        "random_thoughts": ("full", "scores_random_thoughts", {"thoughts": random(np.unique(spans))}),
        "another_positions_thoughts": ("full", "scores_others_thoughts", {"thoughts": others}),
        "gate_0": ("full", "scores_gate_0", {"gate": 0.0}),
        "gate_1": ("full", "scores_gate_1", {"gate": 1.0}),
        "reinforce_weight_0": ("reinforce_weight_0", "scores", {}),
        "full": ("full", "scores", {}),
        "full_everywhere": ("full_everywhere", "scores", {}),
    }
    rows = {}
    for name, (run, kept_as, how) in tqdm(measured.items(), desc="measuring", disable=None):
        rows[name] = scores_of(config, out / run, text, kept_as, **how)
    print_rows(f"{answers.sum():,} quiet answers; mean and spread over seeds {config.seeds}; NLL in nats", rows, SCORES)
    print(f"lm_same_compute: {compute} times the steps of lm_same_tokens")
    keep_results(out, "controls", rows)
    draw_bars(rows, "answer_accuracy", "quiet answers that are right", out / "controls.png")


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
    the answer, and their questions, strings such as "3+7*4-2*9"."""
    rows, questions, at = [], [], 0
    for line in tokenizer.decode(dataset.tokens.tolist()).split("\n")[:-1]:
        question, _, rest = line.partition("=")
        answer = at + len(question) + 1  # where it stands
        if len(rest) == 1 and answer >= context:
            rows.append(dataset.tokens[answer - context : answer + 1])
            questions.append(question)
        at += len(line) + 1
        if len(rows) == count:
            break
    return torch.from_numpy(np.stack(rows).astype(np.int64)), questions


def steps_of(question):
    """The steps that a quiet line leaves out, a string such as "0082"."""
    return "".join(map(str, running_results(question)))


@torch.no_grad()
def think_at_answers(model, tokenizer, rows, thoughts=None, n_thoughts=4, temperature=1.0):
    """Think right after "=", or read thoughts that are given there, a list of lists of strings: the thoughts, likewise;
    the likeliest digit after each (rows, n_thoughts); the gates, likewise."""
    model = model.with_settings(n_thoughts=n_thoughts, n_true=1, thought_temperature=temperature)
    noise, positions = None, torch.full((len(rows), 1), rows.shape[1] - 2)
    if thoughts is None:
        shape = len(rows), n_thoughts, 1, model.config.thought_len
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    else:
        thoughts = torch.tensor([[tokenizer.encode(thought) for thought in row] for row in thoughts])[:, :, None]
    found = model.think(rows, thoughts, positions=positions, noise=noise)
    h_mixed, gate = model.talk(found)
    digits = torch.tensor(tokenizer.encode("0123456789"))
    likeliest = model.model.logits(h_mixed)[:, :, 0, 0, digits].argmax(-1)  # (rows, n_thoughts)
    said = [[tokenizer.decode(thought[0].tolist()) for thought in row] for row in found.tokens]
    return said, likeliest.numpy(), gate[:, :, 0, 0].numpy()


def is_useful(thought, question):
    """Does it begin with just the steps that lead to the answer?"""
    return thought.startswith(steps_of(question)[: len(thought)])


def useful_thoughts(model, tokenizer, rows, questions, n_thoughts=4):
    """Of thoughts sampled at temperature 1: the share that is useful; the share after which the answer is the likeliest
    digit; the mean gate."""
    said, digits, gate = think_at_answers(model, tokenizer, rows, n_thoughts=n_thoughts)
    answers = np.array([[int(steps_of(question)[-1])] for question in questions])
    useful = [is_useful(thought, question) for row, question in zip(said, questions, strict=True) for thought in row]
    return {
        "useful_share": float(np.mean(useful)),
        "answer_accuracy": float((digits == answers).mean()),
        "gate": float(gate.mean()),
    }


def chatter(config, out):
    """Table and picture of the share of useful thoughts over training, for CHATTER's settings."""
    prepare("data/chatter", "data/arithmetic/prepare.py", out, "--chatter=0.5")
    train_bases(config, out)
    seeds, steps = config.all_seeds(), fewer_steps(config)
    preset = [f"--config={HERE / 'config' / 'chatter_base.toml'}", "--base_preset=", "--eval_every=0", *steps]
    train_all({out / "chatter_base": [*preset, f"--init_from={out / 'base' / str(seeds[0])}"]}, 1)  # one for all seeds
    preset = [f"--config={HERE / 'config' / 'chatter.toml'}", "--base_preset=", f"--init_from={out / 'chatter_base'}"]
    preset += ["--save_every=50", "--keep=99", "--eval_every=0", *steps]
    runs = train_rows(config, out / "chatter", CHATTER, preset)

    dataset = open_dataset("data/chatter", "val")
    tokenizer = from_json(dataset.meta["tokenizer"], "data/chatter")
    rows, questions = quiet_questions(dataset, tokenizer)
    found = {}
    for key, (folder, flags) in tqdm(runs.items(), desc="measuring", unit="run", disable=None):

        def make(folder=folder, flags=flags):
            models = over_training(folder, flags)
            return [(step, useful_thoughts(model, tokenizer, rows, questions)) for step, model in models]

        found[key] = remembered(folder, "useful_thoughts", make)

    results, curves = {}, {}
    for name in CHATTER:
        of_seeds = [found[name, seed] for seed in seeds]
        start = over_seeds([points[0][1]["useful_share"] for points in of_seeds])
        end = over_seeds([points[-1][1] for points in of_seeds])
        results[name] = {"useful_at_start": start, **end}
        shares = [{step: measured["useful_share"] for step, measured in points} for points in of_seeds]
        looked = sorted(set.intersection(*map(set, shares)))  # a run that was stopped has a checkpoint of its own
        curves[name] = looked, np.array([[share[step] for step in looked] for share in shares])
    first, without = results["as in config/chatter.toml"], results["without REINFORCE"]
    ends = {"start": first["useful_at_start"], "end": first["useful_share"]}
    ends = {**ends, "end_without_reinforce": without["useful_share"]}
    title = f"{len(rows)} quiet lines, 4 thoughts each at temperature 1; mean and spread over seeds {config.seeds}"
    print_rows(title, results, ("useful_at_start", "useful_share", "answer_accuracy", "gate"))
    means = {name: value["mean"] for name, value in ends.items()}
    keep_results(out, "chatter", {"useful_share": means, "rows": results})
    draw_over_training(curves, "share of useful thoughts", out / "chatter.png")


# ----------------------------------------------------------------------------------------------------------------------
# thought_len, ablations


def thought_len(config, out):
    """Accuracy by thought_len: trained and read with it; trained with the default one, and read with it."""
    default = settings_from([])[2].thought_len
    names = {m: "full" if m == default else "pause" if m == 0 else f"thought_len_{m}" for m in (0, 1, 2, 3, 4, 6)}
    flags = {name: [] if name == "full" else [f"--thought_len={m}"] for m, name in names.items()}
    train_miniatures(config, out, flags)
    text, trained, read = held_out(config), {}, {}
    for m in tqdm(names, desc="measuring", disable=None):
        training = tokens_read([HARD, f"--thought_len={m}"])
        trained[m] = {**scores_of(config, out / names[m], text), "tokens_read": m + 3, "in_training": training}
    for m in tqdm((0, 1, 2, 3, 4, 5, 6, 8), desc="measuring", disable=None):
        how = {"settings": {"thought_len": m}} if m != default else {}
        name = "scores" if m == default else f"scores_thought_len_{m}"
        read[m] = {**scores_of(config, out / "full", text, name, **how), "tokens_read": m + 3}
    base = scores_of(config, out / "base", text)["answer_accuracy"]
    for title, rows in (("trained and evaluated", trained), (f"trained with {default}, evaluated", read)):
        named = {f"thought_len {m}": row for m, row in rows.items()}
        columns = (*SCORES, "tokens_read", *(["in_training"] if rows is trained else []))
        print_rows(f"{title} with thought_len; tokens_read: for each token of text", named, columns)
    keep_results(out, "thought_len", {"trained": trained, f"evaluated_only_trained_with_{default}": read, "base": base})
    lines = {"trained and evaluated so": trained, f"trained with {default}, evaluated so": read}
    draw_lines(
        {name: {m: row["answer_accuracy"] for m, row in rows.items()} for name, rows in lines.items()},
        ("thought_len", "quiet answers that are right"),
        out / "thought_len.png",
        level=("base", base["mean"]),
    )


def ablations(config, out):
    """n_true and n_thoughts, each with everything else as it is by default."""
    default = settings_from([])[2]
    rows = {
        f"{name} {n}": [] if n == getattr(default, name) else [f"--{name}={n}"]
        for name in ("n_true", "n_thoughts")
        for n in (1, 2, 4)
    }
    trained = {name if flags else "full": flags for name, flags in rows.items()}
    train_miniatures(config, out, trained)
    text = held_out(config)
    rows = {
        name: scores_of(config, out / (name.replace(" ", "_") if flags else "full"), text)
        for name, flags in tqdm(rows.items(), desc="measuring", disable=None)
    }
    print_rows(f"ablations; mean and spread over seeds {config.seeds}", rows, SCORES)
    keep_results(out, "ablations", rows)
    draw_bars(rows, "answer_accuracy", "quiet answers that are right", out / "ablations.png")


# ----------------------------------------------------------------------------------------------------------------------
# who gains, and do answers follow the thoughts?


def corrupted(question, place, rng):
    """The steps of a question with the digit at a place (-1: the last) made another: alone, so that the steps after it
    do not follow from it; and carried on, so that they do. Both as strings, such as "0082" -> "0032", "0034"."""
    steps = steps_of(question)
    i = len(steps) + place
    digit = rng.choice([d for d in "0123456789" if d != steps[i]])
    rest = question[1 + 2 * (i + 1) :]  # operations that follow
    return steps[:i] + digit + steps[i + 1 :], steps[:i] + digit + (steps_of(digit + rest) if rest else "")


AFTER = ("accuracy_after_right", "accuracy_after_wrong")
CORRUPTED = ("answer_stays", "answer_follows", "answer_follows_carried_on")


def thoughts_and_answers(model, tokenizer, rows, questions, temperature, n_thoughts):
    """The share of thoughts whose running results are all right, and of answers right after such, and after others (of
    harder questions, perhaps: what thoughts do to answers, `corrupt` shows)."""
    said, digits, _ = think_at_answers(model, tokenizer, rows, n_thoughts=n_thoughts, temperature=temperature)
    pairs = zip(said, questions, strict=True)
    useful = np.array([[is_useful(thought, question) for thought in row] for row, question in pairs])
    right = digits == np.array([[int(steps_of(question)[-1])] for question in questions])
    after = [float(right[some].mean()) if some.any() else None for some in (useful, ~useful)]
    return {"right": float(useful.mean()), **dict(zip(AFTER, after, strict=True))}


def corrupt(model, tokenizer, rows, questions, place):
    """Right thoughts with one digit of the steps made another (place -1: the last), where that leads to another answer.
    The share of answers that stay what they were; that are what the other digit leads to, though the thought goes on as
    before; and if the thought goes on from the other digit as well."""
    rng, m, answers, pairs, some = np.random.default_rng(0), model.config.thought_len, [], [], []
    for i, question in enumerate(questions):
        alone, carried = corrupted(question, place, rng)
        if len(alone) <= m and carried[-1] != steps_of(question)[-1]:  # its steps fit into a thought
            some.append(i)
            pairs.append((alone, carried))
            answers.append((int(steps_of(question)[-1]), int(carried[-1])))
    given = [[(thought + "—" * m)[:m] for thought in pair] for pair in pairs]
    _, digits, _ = think_at_answers(model, tokenizer, rows[some], given)
    stays, leads_to = np.array(answers).T
    shares = digits[:, 0] == stays, digits[:, 0] == leads_to, digits[:, 1] == leads_to
    return dict(zip(CORRUPTED, (float(x.mean()) for x in shares), strict=True))


def who(config, out):
    """Gains by difficulty, gates, and what answers make of right, wrong and corrupted thoughts."""
    runs, (spans, answers, meta) = train_miniatures(config, out, {"full": []}), held_out(config)
    dataset = open_dataset("data/arithmetic", "val")
    tokenizer = from_json(dataset.meta["tokenizer"], "data/arithmetic")
    rows, questions = quiet_questions(dataset, tokenizer)
    of_seeds, edges = [], np.linspace(-0.5, 1.5, 41)
    for seed in tqdm(config.all_seeds(), desc="measuring", unit="seed", disable=None):
        base, full = (load_run(folder, "cpu")[0] for folder in (out / "base" / str(seed), runs["full", seed][0]))
        difficulty, own = measure(base, spans, meta).nll_base, measure(full, spans, meta)
        others = measure(full, spans, meta, thoughts=of_other_positions(own.thoughts, answers))
        gains = {"own": own.nll_base - own.nll_mixed, "others": own.nll_base - others.nll_mixed}
        deciles = np.array_split(np.argsort(difficulty, axis=None), 10)
        gates = {"at_answers": own.gate[answers], "elsewhere": own.gate[~answers]}
        of_seeds.append(
            {
                "base_nll_by_decile": [float(difficulty.flat[some].mean()) for some in deciles],
                "gain_by_decile": {
                    name: [float(gain.flat[some].mean()) for some in deciles] for name, gain in gains.items()
                },
                "gate": {name: float(gate.mean()) for name, gate in gates.items()},
                "gate_histogram": {
                    name: (np.histogram(gate.clip(edges[0], edges[-1]), edges)[0] / gate.size).tolist()
                    for name, gate in gates.items()
                },
                "thoughts": {
                    "greedy": {"right": thoughts_and_answers(full, tokenizer, rows, questions, 0.0, 1)["right"]},
                    "sampled": thoughts_and_answers(full, tokenizer, rows, questions, 1.0, 4),
                },
                "corrupted": {
                    name: corrupt(full, tokenizer, rows, questions, place)
                    for place, name in ((-1, "last digit"), (-2, "last but one"), (-3, "last but two"))
                },
            }
        )
    found = over_seeds(of_seeds)
    title = f"{len(rows)} quiet lines; mean and spread over seeds {config.seeds}"
    print_rows(f"thoughts and answers right after them, {title}", found["thoughts"], ("right", *AFTER))
    print_rows(f"one digit of right steps made another, {title}", found["corrupted"], CORRUPTED)
    gate = {name: {"gate": x} for name, x in found["gate"].items()}
    print_rows("gate", gate, ("gate",))
    keep_results(out, "who", {**found, "gate_histogram_edges": edges.tolist()})
    draw_who(found, edges, CORRUPTED, out / "who.png")


# ----------------------------------------------------------------------------------------------------------------------
# curriculum: thoughts that grow shorter, and end (Fast Quiet-STaR, Huang et al. 2025)

STAGES = (3, 2, 1, 0)


def curriculum(config, out):
    """Thoughts lose a token at each stage, and at the last the model learns without any: what stays of the gain? Beside
    as many steps of language modelling, which read the same text but fewer tokens in all."""
    rows, before = {"full": []}, "full"
    for m in STAGES:
        name = f"curriculum_{m}"
        rows[name], before = [f"--init_from={out / before}/{{seed}}", f"--thought_len={m}"], name
    rows["curriculum_none"] = ["--objective=lm", f"--init_from={out / before}/{{seed}}"]
    rows["lm_as_long"] = ["--objective=lm", max_steps(config, times=len(STAGES) + 2)]
    preset = train_bases(config, out)
    for name, flags in rows.items():  # one after the other: each begins where the one before ended
        train_rows(config, out, {name: flags}, preset)
    text, found = held_out(config), {"base": None, **rows}
    for name in tqdm(found, desc="measuring", disable=None):
        found[name] = scores_of(config, out / name, text)
    columns = ("answer_accuracy", "accuracy_without_thoughts", "answer_nll", "other_nll")
    print_rows(f"thoughts that grow shorter; mean and spread over seeds {config.seeds}", found, columns)
    ends = {
        "with_thoughts": found["full"]["answer_accuracy"]["mean"],
        "without_thoughts": found["curriculum_none"]["answer_accuracy"]["mean"],
    }
    keep_results(out, "curriculum", {**ends, "rows": found})
    stages = list(rows)[:-1]
    lines = {"after a thought": "answer_accuracy", "without": "accuracy_without_thoughts"}
    lines = {line: {stage: found[stage][column] for stage in stages} for line, column in lines.items()}
    del lines["after a thought"]["curriculum_none"]
    level = "as many LM steps", found["lm_as_long"]["answer_accuracy"]["mean"]
    draw_lines(lines, ("stage", "quiet answers that are right"), out / "curriculum.png", level)


# ----------------------------------------------------------------------------------------------------------------------
# cups: a second kind of text


def cups(config, out):
    """A shell game (data/cups) instead of arithmetic; four of the controls' rows."""
    prepare("data/cups", "data/cups/prepare.py", out)
    steps = fewer_steps(config)
    preset = [f"--config={HERE / 'config' / 'cups_base.toml'}", "--eval_every=0", *steps]
    train_rows(config, out / "cups", {"base": []}, preset)
    preset = [f"--config={HERE / 'config' / 'cups.toml'}", "--base_preset=", "--eval_every=0", *steps]
    preset += [f"--init_from={out / 'cups' / 'base'}/{{seed}}"]
    rows = {"lm_same_tokens": ["--objective=lm"], "pause": ["--thought_len=0"], "full": []}
    train_rows(config, out / "cups", rows, preset)
    text = held_out(config, "data/cups")
    rows = {
        name: scores_of(config, out / "cups" / name, text)
        for name in tqdm(["base", *rows], desc="measuring", disable=None)
    }
    print_rows(f"a shell game; {text[1].sum():,} quiet answers; seeds {config.seeds}", rows, SCORES)
    keep_results(out, "cups", rows)
    draw_bars(rows, "answer_accuracy", "quiet answers that are right", out / "cups.png")


# ----------------------------------------------------------------------------------------------------------------------
# adaptive: thinking only where it pays

SHARES = (0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)

BUDGET = 0.07  # share of positions for which a threshold is chosen (on half of the held-out text; judged on the other)


@torch.no_grad()
def base_entropy(model, spans, batch_size=32):
    """Entropy of the prediction of each token of spans (W, T+1) without a thought: nats (W, T)."""
    parts = torch.from_numpy(spans).split(batch_size)
    return np.concatenate([entropy(model.model.output, model.read_text(part).hidden).numpy() for part in parts])


def accuracy_where(think, found, answers, some=slice(None)):
    """Share of answers that are right if the model thinks where `think` (W, T) says so; on some spans."""
    return float(np.where(think, found.right_mixed, found.right_base)[some][answers[some]].mean())


def gain_kept(think, found, answers, some=slice(None)):
    """The share that is kept of the accuracy that thinking everywhere gains, if the model thinks where `think` says so;
    on some spans. None if it gains nothing."""
    nowhere, there, everywhere = (accuracy_where(x, found, answers, some) for x in (False, think, True))
    return (there - nowhere) / (everywhere - nowhere) if everywhere > nowhere else None


def adaptive(config, out):
    """Accuracy against the share of positions that think, and the seconds saved: beside thinking everywhere on a given
    text, where its guesses of the next token are always right."""
    runs, (spans, answers, meta) = train_miniatures(config, out, {"full": []}), held_out(config)
    half, of_seeds, curves = len(spans) // 2, [], []
    chosen_on, judged_on = slice(half), slice(half, None)
    text = torch.from_numpy(open_dataset("data/arithmetic", "val").tokens[None, :400].astype(np.int64))
    for seed in tqdm(config.all_seeds(), desc="measuring", unit="seed", disable=None):
        model = load_run(runs["full", seed][0], "cpu")[0]
        found = measure(model, spans, meta)
        predictors = {
            "gain head": found.expected_gain,
            "base entropy": base_entropy(model, spans),
            "random": np.random.default_rng(seed).random(answers.shape),
        }
        curves.append(
            {
                name: [accuracy_where(score >= np.quantile(score, 1 - share), found, answers) for share in SHARES]
                for name, score in predictors.items()
            }
        )
        think_above = float(np.quantile(found.expected_gain[chosen_on], 1 - BUDGET))
        thinks, gain = found.expected_gain > think_above, found.nll_base - found.nll_mixed
        seconds = seconds_per_token(model, text, think_above)
        of_seeds.append(
            {
                "think_above": think_above,
                "share_thinking": float(thinks[judged_on].mean()),
                "gain_kept": gain_kept(thinks, found, answers, judged_on),
                "nats_kept": float((gain * thinks)[judged_on].sum() / gain[judged_on].sum()),
                "speedup": seconds["everywhere"] / seconds["where_it_pays"],
                "everywhere_over_nowhere": seconds["everywhere"] / seconds["nowhere"],
            }
        )
    found, curves = over_seeds(of_seeds), over_seeds(curves)
    title = f"mean and spread over seeds {config.seeds}"
    print_rows(f"thinking where the gain head expects it to pay; {title}", {"": found}, list(found))
    rows = {f"{share:.0%} think": {name: line[i] for name, line in curves.items()} for i, share in enumerate(SHARES)}
    print_rows(f"quiet answers that are right, by how the positions that think are chosen; {title}", rows, list(curves))
    means = {name: x and x["mean"] for name, x in found.items()}
    keep_results(out, "adaptive", {**means, "over_seeds": found, "shares": SHARES, "answer_accuracy_by": curves})
    lines = {name: dict(zip(SHARES, line, strict=True)) for name, line in curves.items()}
    draw_lines(lines, ("share of positions that think", "quiet answers that are right"), out / "adaptive.png")


# ----------------------------------------------------------------------------------------------------------------------

COMMANDS = {
    command.__name__: command
    for command in (controls, chatter, thought_len, who, ablations, curriculum, cups, adaptive)
}


def main():
    arguments = sys.argv[1:]
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else ""
    config, _ = from_cli(__doc__, PaperConfig, argv=arguments)
    if name and name not in COMMANDS:
        sys.exit(f"paper.py: error: {name!r} is not one of {', '.join(COMMANDS)} (--help says more)")
    out = Path(config.out) / f"{config.steps}_steps" if config.steps else Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        for command in [COMMANDS[name]] if name else COMMANDS.values():
            start = time.perf_counter()
            print(f"\n{command.__name__}: {' '.join(command.__doc__.split())}", flush=True)
            command(config, out)
            took = time.perf_counter() - start
            print(f"\ntable: {out / 'results.json'}   picture: {out / command.__name__}.png   {took:.0f} s", flush=True)
    except (ValueError, OSError) as error:
        sys.exit(f"paper.py: error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped: run the same command again to go on")


if __name__ == "__main__":
    main()

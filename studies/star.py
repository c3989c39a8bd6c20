"""
STaR, the predecessor: a model learns from its own rationales that end in right answers. From a base model that has read
sums of all lengths, but not enough of them; and from one that has never read the longer ones.

    python -m studies.star
"""

import dataclasses
import random
import re
from functools import partial
from itertools import product

import torch

from beyond.star import Question, StarConfig, fine_tune, self_taught, write
from data.arithmetic.prepare import running_results
from lean.tensors import padded, take
from lib.pictures import picture
from lib.runs import load_run
from studies.runs import HERE, fewer_steps, in_parallel, prepare, run_studies, train_bases, train_rows
from studies.tables import keep_results, over_seeds, print_rows, remembered

OPERATIONS = range(3, 7)
TRAIN, TEST = 2000, 1000  # questions, as many of each number of operations
BASE_STEPS = 1500  # of further language modelling on lines of 1 to 6 operations: not enough to learn them
ROWS = {  # settings of StarConfig; two controls are no STaR
    "direct": None,
    "gold": None,
    "star": {"rationalize": False},
    "star_rationalized": {},
    "keep_all": {"rationalize": False, "keep_all": True},
    "going_on": {"rationalize": False, "go_on": True},
}


def questions(tokenizer, count, seed):
    """Sums of 3 to 6 operations, no two alike, as ids, with their steps: [(Question, "0082")]."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        n = OPERATIONS[len(found) % len(OPERATIONS)]
        sum_ = rng.choice("0123456789") + "".join(rng.choice("+-*") + rng.choice("0123456789") for _ in range(n))
        steps = "".join(map(str, running_results(sum_)))
        prompt, hinted = (tokenizer.encode(f"\n{sum_}={hint}—") for hint in ("", steps[-1]))
        found.setdefault(sum_, (Question(prompt, hinted, steps[-1]), steps))
    return list(found.values())


def split(text):
    """What was written, such as "0082—2\\n": its steps and its answer, or None."""
    match = re.fullmatch(r"(\d*)—+(\d)\n", text)
    return match.groups() if match else (None, None)


def judge(model, tokenizer, asked, config, direct=False):
    """Accuracy on questions [(Question, steps)], by number of operations too; of right answers, the share whose steps
    are all right."""
    if direct:  # the likeliest digit in place of the dash that begins a rationale
        digits, (tokens, lengths) = (
            torch.tensor(tokenizer.encode("0123456789")),
            padded([q.prompt[:-1] for q, _ in asked]),
        )
        with torch.no_grad():
            h = take(model(tokens), lengths - 1)
        said = [(None, str(digit)) for digit in model.logits(h)[:, digits].argmax(-1).tolist()]
    else:
        said = [split(tokenizer.decode(ids)) for ids in write(model, [q.prompt for q, _ in asked], config)]
    right = [answer == q.answer for (_, answer), (q, _) in zip(said, asked, strict=True)]
    faithful = [steps == true for (steps, _), (_, true), ok in zip(said, asked, right, strict=True) if ok]
    of = {n: [ok for ok, (_, steps) in zip(right, asked, strict=True) if len(steps) == n] for n in OPERATIONS}
    return {
        "accuracy": sum(right) / len(right),
        "by_operations": [sum(x) / len(x) for x in of.values()],
        "faithful_of_right": sum(faithful) / len(faithful) if faithful and not direct else None,
    }


def rationales(kept, steps_of, tokenizer, count):
    """Of what was kept for fine-tuning: its share of all questions, and the share whose steps are all right; of that
    which took a hint, too."""
    good = [(k.hinted, split(tokenizer.decode(k.written))[0] == steps_of[tuple(k.question.prompt)]) for k in kept]
    faithful = sum(ok for _, ok in good) / len(good) if good else None
    shares = {"kept_share": len(good) / count, "faithful_share": faithful}
    hinted = [ok for by_hint, ok in good if by_hint]
    return {**shares, "faithful_of_hinted": sum(hinted) / len(hinted) if hinted else None}


def teach(folder, row, iterations):
    """One row from one base model: [what `judge` says, and of what it was taught, by iteration]."""
    base, tokenizer, *_ = load_run(folder)
    seed = int(folder.name)
    config = StarConfig(
        read=lambda ids: split(tokenizer.decode(ids))[1],
        end=tokenizer.encode("\n")[0],
        iterations=iterations,
        seed=seed,
    )
    asked, test = questions(tokenizer, TRAIN, f"train {seed}"), questions(tokenizer, TEST, "test")
    known = {tuple(q.prompt) for q, _ in asked}
    test = [(q, steps) for q, steps in test if tuple(q.prompt) not in known]
    if row == "base":
        return [{**judge(base, tokenizer, test, config), "direct": judge(base, tokenizer, test, config, direct=True)}]
    if ROWS[row] is None:
        direct, found = row == "direct", []
        text = (lambda q, steps: f"{q.answer}\n") if direct else (lambda q, steps: f"{steps}—{q.answer}\n")
        examples = [(q.prompt[:-1] if direct else q.prompt, tokenizer.encode(text(q, steps))) for q, steps in asked]
        for n in range(iterations):
            steps = config.steps_in(n)
            model = fine_tune(base, examples, steps, config, seed + n)
            found.append({"steps": steps, **judge(model, tokenizer, test, config, direct)})
        return found
    found, steps_of = [], {tuple(q.prompt): steps for q, steps in asked}
    config = dataclasses.replace(config, **ROWS[row])
    for model, kept, steps in self_taught(base, [q for q, _ in asked], config):
        about = rationales(kept, steps_of, tokenizer, len(asked))
        found.append({"steps": steps, **about, **judge(model, tokenizer, test, config)})
    return found


def star(config, out):
    """Accuracy by number of operations and iteration; what was kept, and how much of it has the right steps."""
    iterations = 2 if config.steps else StarConfig.iterations
    train_bases(config, out)
    prepare(
        "data/star", "data/arithmetic/prepare.py", out, "--explained=0.3", "--min_operations=1", "--max_operations=6"
    )
    preset = [f"--config={HERE / 'config' / 'arithmetic_base.toml'}", "--eval_every=0", "--data=data/star"]
    preset += [f"--init_from={out / 'base'}/{{seed}}", *(fewer_steps(config) or [f"--max_steps={BASE_STEPS}"])]
    train_rows(config, out, {"star": []}, preset)
    folders = {"half_way": (out / "star", ["base", *ROWS]), "never_long": (out / "base", ["base", "star"])}
    jobs = {}
    for name, (folder, rows) in folders.items():
        jobs |= {(name, row, seed): folder / str(seed) for row, seed in product(rows, config.all_seeds())}
    calls = {key: (taught, folder, key[1], iterations) for key, folder in jobs.items()}
    found = in_parallel(calls, config.jobs, "teaching")
    results = {}
    for name in ("half_way", "never_long"):
        rows = dict.fromkeys(row for base, row, _ in found if base == name)
        of = {row: over_seeds([found[name, row, seed] for seed in config.all_seeds()]) for row in rows}
        last = {row: x[-1] for row, x in of.items()}
        last = {"base": last["base"], "base, direct": last["base"]["direct"], **last}
        columns = ("accuracy", "kept_share", "faithful_share", "faithful_of_hinted", "faithful_of_right")
        title = f"from a base model that {'is half way' if name == 'half_way' else 'never read more than 4 operations'}"
        print_rows(f"{title}, after {iterations} iterations; mean and spread over seeds {config.seeds}", last, columns)
        by = {
            row: {str(n): of for n, of in zip(OPERATIONS, x["by_operations"], strict=True)} for row, x in last.items()
        }
        print_rows("accuracy by number of operations", by, [str(n) for n in OPERATIONS])
        results[name] = {"last": last, "by_iteration": of}
    first = {row: {"faithful_share": x.get("faithful_of_right"), **x} for row, x in results["half_way"]["last"].items()}
    keep_results(out, "star", {**first, **results})
    draw_iterations(results, out / "star.png")


def taught(folder, row, iterations):
    return remembered(folder, f"star_{row}", partial(teach, folder, row, iterations), iterations=iterations)


def draw_iterations(results, path):
    """The paper's figure: accuracy by number of operations over iterations, a panel a row."""
    shown = {f"{row.replace('_', ' ')}": results["half_way"]["by_iteration"][row] for row in ROWS if row != "going_on"}
    shown["never read 5 or 6: star"] = results["never_long"]["by_iteration"]["star"]
    bases = [results["half_way"]["by_iteration"]["base"]] * (len(shown) - 1)
    bases.append(results["never_long"]["by_iteration"]["base"])
    with picture(path, 3.1 * len(shown), 3.2, len(shown), "STaR: accuracy by number of operations") as panels:
        for (title, rows), base, axes in zip(shown.items(), bases, panels, strict=True):
            start = base[0]["direct"] if title == "direct" else base[0]
            for at, n in enumerate(OPERATIONS):
                points = [x["by_operations"][at] for x in (start, *rows)]
                mean, spread = ([x[key] for x in points] for key in ("mean", "spread"))
                axes.errorbar(range(len(points)), mean, yerr=spread, label=f"{n}", marker="o", ms=3, capsize=2)
            axes.set(title=title, xlabel="iteration", ylim=(0, 1.03))


if __name__ == "__main__":
    run_studies(__doc__, star)

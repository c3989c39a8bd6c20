"""
STaR, the predecessor: a model learns from its own rationales that end in right answers. Its base model can think aloud,
but has read text that seldom does, so it rather guesses.

    python -m studies.star
"""

import dataclasses
import random
import re
from functools import partial
from itertools import product

from beyond.star import Question, StarConfig, fine_tune, self_taught, write
from data.arithmetic.prepare import digits, running_sums
from lib.pictures import picture
from lib.runs import load_run
from studies.runs import (
    HERE,
    fewer_steps,
    in_parallel,
    prepare,
    run_studies,
    train_bases,
    train_rows,
)
from studies.tables import keep_results, over_seeds, print_rows, remembered

DIGITS = range(4, 5)
TRAIN, TEST = 2000, 1000  # questions, as many of each number of digits
EXPLICIT, BASE_STEPS, BASE_LR = (
    0.15,
    200,
    2e-4,
)  # share of lines that think aloud in what the base model has read last
ITERATIONS = 8
ROWS = {  # settings of StarConfig; two controls are no STaR
    "direct": None,
    "gold": None,
    "star": {"rationalize": False},
    "star_rationalized": {},
    "keep_all": {"rationalize": False, "keep_all": True},
    "going_on": {"rationalize": False, "go_on": True},
}


def questions(tokenizer, count, seed):
    """Sums of 4 digits, no two alike, as ids, with their steps: [(Question, "3154")]."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        n = DIGITS[len(found) % len(DIGITS)]
        sum_ = digits(n, rng)
        steps = running_sums(sum_)
        prompt, hinted, opening = map(
            tokenizer.encode, (f"\n{sum_}=", f"\n{sum_}={steps[-1]}—", "—")
        )
        found.setdefault(sum_, (Question(prompt, hinted, steps[-1], opening), steps))
    return list(found.values())


def split(text):
    """What was written, such as "—3154—4\\n" or "2\\n": its steps and its answer, None where there are none."""
    match = re.fullmatch(r"(?:—(\d+)—+)?(\d)\n", text)
    return match.groups() if match else (None, None)


def judge(model, tokenizer, asked, config):
    """Of questions [(Question, steps)]: accuracy, by number of digits too; the share that is answered after steps;
    and of right answers, the share whose steps are all right."""
    said = [
        split(tokenizer.decode(ids)) for ids in write(model, [q.prompt for q, _ in asked], config)
    ]
    right = [answer == q.answer for (_, answer), (q, _) in zip(said, asked, strict=True)]
    faithful = [
        steps == true for (steps, _), (_, true), ok in zip(said, asked, right, strict=True) if ok
    ]
    of = {
        n: [ok for ok, (_, steps) in zip(right, asked, strict=True) if len(steps) == n]
        for n in DIGITS
    }
    return {
        "accuracy": sum(right) / len(right),
        "by_digits": [sum(x) / len(x) for x in of.values()],
        "aloud_share": sum(steps is not None for steps, _ in said) / len(said),
        "faithful_of_right": sum(faithful) / len(faithful) if faithful else None,
    }


def rationales(kept, steps_of, tokenizer, count):
    """Of what was kept for fine-tuning: its share of all questions, and the share whose steps are all right; of that
    which took a hint, too."""
    good = [
        (k.hinted, split(tokenizer.decode(k.written))[0] == steps_of[tuple(k.question.prompt)])
        for k in kept
    ]
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
        return [judge(base, tokenizer, test, config)]
    if ROWS[row] is None:
        text, found = "{answer}\n" if row == "direct" else "—{steps}—{answer}\n", []
        examples = [
            (q.prompt, tokenizer.encode(text.format(steps=steps, answer=q.answer)))
            for q, steps in asked
        ]
        for n in range(iterations):
            steps = config.steps_in(n)
            model = fine_tune(base, examples, steps, config, seed + n)
            found.append({"steps": steps, **judge(model, tokenizer, test, config)})
        return found
    found, steps_of = [], {tuple(q.prompt): steps for q, steps in asked}
    config = dataclasses.replace(config, **ROWS[row])
    for model, kept, steps in self_taught(base, [q for q, _ in asked], config):
        about = rationales(kept, steps_of, tokenizer, len(asked))
        found.append({"steps": steps, **about, **judge(model, tokenizer, test, config)})
    return found


def star(config, out):
    """Accuracy by number of digits and iteration; what was kept, and how much of it has the right steps."""
    iterations = 2 if config.steps else ITERATIONS
    train_bases(config, out)
    text = ["--chatter=0", "--no-mark", "--double=0.3", f"--explicit={EXPLICIT}"]
    prepare("data/star", "data/arithmetic/prepare.py", out, *text)
    preset = [
        f"--config={HERE / 'config' / 'arithmetic_base.toml'}",
        "--eval_every=0",
        "--data=data/star",
        f"--lr={BASE_LR}",
    ]
    preset += [
        f"--init_from={out / 'base'}/{{seed}}",
        *(fewer_steps(config) or [f"--max_steps={BASE_STEPS}"]),
    ]
    train_rows(config, out, {"star_base": []}, preset)
    keys = product(["base", *ROWS], config.all_seeds())
    calls = {
        (row, seed): (taught, out / "star_base" / str(seed), row, iterations) for row, seed in keys
    }
    found = in_parallel(calls, config.jobs, "teaching")
    of = {
        row: over_seeds([found[row, seed] for seed in config.all_seeds()])
        for row in ("base", *ROWS)
    }
    last = {row: x[-1] for row, x in of.items()}
    title = f"after {iterations} iterations; mean and spread over seeds {config.seeds}"
    columns = (
        "accuracy",
        "aloud_share",
        "kept_share",
        "faithful_share",
        "faithful_of_hinted",
        "faithful_of_right",
    )
    print_rows(f"answers to questions nobody was taught, {title}", last, columns)
    by = {row: [x["accuracy"] for x in of["base"] + of[row]] for row in ROWS}
    by = {row: {str(n): x for n, x in enumerate(accuracy)} for row, accuracy in by.items()}
    print_rows("accuracy by iteration", by, [str(n) for n in range(iterations + 1)])
    first = {row: {"faithful_share": x.get("faithful_of_right"), **x} for row, x in last.items()}
    keep_results(out, "star", {**first, "by_iteration": of})
    draw_iterations(of, out / "star.png")


def taught(folder, row, iterations):
    return remembered(
        folder, f"star_{row}", partial(teach, folder, row, iterations), iterations=iterations
    )


def draw_iterations(of, path):
    """The paper's figure: accuracy by number of digits over iterations, a panel a row."""
    with picture(
        path, 2.9 * len(ROWS), 3.2, len(ROWS), "STaR: accuracy by number of digits"
    ) as panels:
        for row, axes in zip(ROWS, panels, strict=True):
            for at, n in enumerate(DIGITS):
                points = [x["by_digits"][at] for x in of["base"] + of[row]]
                mean, spread = ([x[key] for x in points] for key in ("mean", "spread"))
                axes.errorbar(
                    range(len(points)), mean, yerr=spread, label=f"{n}", marker="o", ms=3, capsize=2
                )
            axes.set(title=row.replace("_", " "), xlabel="iteration", ylim=(0, 1.03))


if __name__ == "__main__":
    run_studies(__doc__, star)

"""
STaR, the predecessor: a model learns from its own rationales that end in right answers. Its base
model can think aloud, but has read text that seldom does, so it rather guesses.

    python -m studies.star
"""

import random
import re
from functools import partial

from tqdm import tqdm

from beyond.star import Question, StarConfig, fine_tune, self_taught, write
from data.arithmetic.prepare import digits, running_sums
from lib.pictures import draw_lines
from lib.runs import load_run
from studies.runs import BASE, max_steps, prepare, run_studies, train_bases, train_rows
from studies.tables import over_seeds, print_rows, remembered

TRAIN, TEST, ITERATIONS = 2000, 1000, 8  # questions, iterations
TAUGHT = {"direct": "{answer}\n", "gold": "—{steps}—{answer}\n"}  # controls, by what they learn
STAR = {  # settings of StarConfig
    "star": {"rationalize": False},
    "star_rationalized": {},
    "keep_all": {"rationalize": False, "keep_all": True},
    "going_on": {"rationalize": False, "go_on": True},
}


def questions(tokenizer, count, seed):
    """Sums of four digits, no two alike, as ids, with their steps: [(Question, "3154")]."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        question = digits(4, rng)
        steps = running_sums(question)
        texts = f"\n{question}=", f"\n{question}={steps[-1]}—", "—"
        prompt, hinted, opening = map(tokenizer.encode, texts)
        found[question] = Question(prompt, hinted, steps[-1], opening), steps
    return list(found.values())


def split(text):
    """The steps and the answer in what was written, such as "—3154—4\\n" or "2\\n"; or None."""
    match = re.fullmatch(r"(?:—(\d+)—+)?(\d)\n", text)
    return match.groups() if match else (None, None)


def share(values):
    """The share of true values; None if there are no values."""
    return sum(values) / len(values) if values else None


def judge(model, tokenizer, asked, config):
    """Of questions [(Question, steps)]: accuracy; the share that is answered after steps; and of
    right answers, the share whose steps are all right."""
    written = write(model, [question.prompt for question, _ in asked], config)
    answers = [split(tokenizer.decode(ids)) for ids in written]
    pairs = zip(answers, asked, strict=True)
    faithful = [steps == true for (steps, answer), (q, true) in pairs if answer == q.answer]
    return {
        "accuracy": len(faithful) / len(asked),
        "aloud_share": share([steps is not None for steps, _ in answers]),
        "faithful_of_right": share(faithful),
    }


def rationales(kept, steps_of, tokenizer):
    """Of what was kept for fine-tuning: its share of all questions; the share whose steps are all
    right; that of what was written with a hint."""
    faithful = {True: [], False: []}  # by hint
    for example in kept:
        steps, _ = split(tokenizer.decode(example.written))
        faithful[example.hinted].append(steps == steps_of[tuple(example.question.prompt)])
    return {
        "kept_share": len(kept) / len(steps_of),
        "faithful_share": share(faithful[True] + faithful[False]),
        "faithful_of_hinted": share(faithful[True]),
    }


def teach(run, row, iterations):
    """One row from one base model: [what `judge` and `rationales` say, by iteration]."""
    base, tokenizer, *_ = load_run(run)
    asked = questions(tokenizer, TRAIN, f"train {run.name}")
    steps_of = {tuple(q.prompt): steps for q, steps in asked}
    test = [x for x in questions(tokenizer, TEST, "test") if tuple(x[0].prompt) not in steps_of]
    how = {"read": lambda ids: split(tokenizer.decode(ids))[1], **STAR.get(row, {})}
    end, seed = tokenizer.encode("\n")[0], int(run.name)
    config = StarConfig(end=end, seed=seed, iterations=iterations, **how)
    found = [judge(base, tokenizer, test, config)]
    if row in STAR:
        for model, kept, _ in self_taught(base, [q for q, _ in asked], config):
            about = rationales(kept, steps_of, tokenizer)
            found.append(judge(model, tokenizer, test, config) | about)
        return found
    texts = [TAUGHT[row].format(steps=steps, answer=q.answer) for q, steps in asked]
    pairs = zip(asked, texts, strict=True)
    examples = [(q.prompt, tokenizer.encode(text)) for (q, _), text in pairs]
    for n in range(iterations):
        model = fine_tune(base, examples, config.steps_in(n), config, config.seed + n)
        found.append(judge(model, tokenizer, test, config))
    return found


def star(config, out):
    """Does a model climb by its own right answers, and by right steps?"""
    prepare("data/star", out, "--chatter=0", "--no-mark", "--double=0.3", "--explicit=0.15")
    train_bases(config, out)
    preset = [*BASE, "--data=data/star", "--lr=2e-4", max_steps(config, 200)]
    preset.append(f"--init_from={out / 'base'}/{{seed}}")
    runs = train_rows(config, out, {"star_base": []}, preset)["star_base"]
    seeds, iterations, of = config.all_seeds(), 2 if config.steps else ITERATIONS, {}
    for row in tqdm([*TAUGHT, *STAR], "teaching", disable=None):
        makes = {runs / str(x): partial(teach, runs / str(x), row, iterations) for x in seeds}
        of[row] = over_seeds([remembered(run, f"star_{row}", makes[run]) for run in makes])
    last = {"base": of["star"][0]} | {row: x[-1] for row, x in of.items()}
    print_rows(f"after {iterations} iterations", last, list(last["star_rationalized"]))
    lines = {row: {n: point["accuracy"] for n, point in enumerate(x)} for row, x in of.items()}
    labels = "iteration", "answers that are right"
    draw_lines(lines, labels, out / "star.png", "STaR: accuracy by iteration")
    return {**last, "by_iteration": of}


if __name__ == "__main__":
    run_studies(__doc__, star)

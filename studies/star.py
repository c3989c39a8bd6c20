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
from studies.runs import BASE, prepare, run_studies, train_on, train_rows
from studies.tables import over_seeds, print_rows, remembered, share

TRAIN, TEST, ITERATIONS = 2000, 1000, 8  # questions, iterations
TAUGHT = {"direct": "{answer}\n", "gold": "—{steps}—{answer}\n"}  # controls, by what they learn
STAR = {  # settings of StarConfig
    "star": {"rationalize": False},
    "star_rationalized": {},
    "keep_all": {"rationalize": False, "keep_all": True},
}


def questions(tokenizer, count, seed):
    """Sums of four digits, no two alike: a list of Question."""
    rng, found = random.Random(seed), {}
    while len(found) < count:
        question = digits(4, rng)
        steps = running_sums(question)
        texts = f"\n{question}=", f"\n{question}={steps[-1]}—", "—"
        prompt, hinted, opening = map(tokenizer.encode, texts)
        found[question] = Question(prompt, hinted, steps[-1], opening)
    return list(found.values())


def steps_of(question, tokenizer):
    """The true steps of a Question, such as "3154" of 3849=."""
    return running_sums(tokenizer.decode(question.prompt)[1:-1])


def split(text):
    """The steps and the answer in what was written, such as "—3154—4\\n" or "2\\n"; or None."""
    match = re.fullmatch(r"(?:—(\d+)—+)?(\d)\n", text)
    return match.groups() if match else (None, None)


def judge(model, tokenizer, asked, config):
    """Of questions: accuracy; the share that is answered after steps; and of right answers, the
    share whose steps are all right."""
    written = write(model, [q.prompt for q in asked], config)
    answers = [(q, *split(tokenizer.decode(x))) for q, x in zip(asked, written, strict=True)]
    right = [(steps, steps_of(q, tokenizer)) for q, steps, answer in answers if answer == q.answer]
    return {
        "accuracy": len(right) / len(asked),
        "aloud_share": share(steps is not None for _, steps, _ in answers),
        "faithful_of_right": share(steps == true for steps, true in right),
    }


def rationales(kept, count, tokenizer):
    """Of what was kept for fine-tuning: its share of all questions; the share whose steps are all
    right; that of what was written with a hint."""
    faithful = []
    for x in kept:
        steps, _ = split(tokenizer.decode(x.written))
        faithful.append((steps == steps_of(x.question, tokenizer), x.hinted))
    return {
        "kept_share": len(kept) / count,
        "faithful_share": share(is_right for is_right, _ in faithful),
        "faithful_of_hinted": share(is_right for is_right, hinted in faithful if hinted),
    }


def teach(run, row, iterations):
    """One row from one base model: [what `judge` and `rationales` say, by iteration]."""
    base, tokenizer, *_ = load_run(run)
    asked = questions(tokenizer, TRAIN, f"train {run.name}")
    test = [q for q in questions(tokenizer, TEST, "test") if q not in asked]
    how = {"read": lambda ids: split(tokenizer.decode(ids))[1], **STAR.get(row, {})}
    end, seed = tokenizer.encode("\n")[0], int(run.name)
    config = StarConfig(end=end, seed=seed, iterations=iterations, **how)
    found = [judge(base, tokenizer, test, config)]
    if row in STAR:
        for model, kept in self_taught(base, asked, config):
            about = rationales(kept, len(asked), tokenizer)
            found.append(judge(model, tokenizer, test, config) | about)
        return found
    examples = []
    for q in asked:
        text = TAUGHT[row].format(steps=steps_of(q, tokenizer), answer=q.answer)
        examples.append((q.prompt, tokenizer.encode(text)))
    for n in range(iterations):
        model = fine_tune(base, examples, config.steps_in(n), config, config.seed + n)
        found.append(judge(model, tokenizer, test, config))
    return found


def star(config, out):
    """Does a model climb by its own right answers, and by right steps?"""
    prepare("data/star", out, "--chatter=0", "--no-mark", "--double=0.3", "--explicit=0.15")
    base = train_on("plain", config, out, {})["base"]
    preset = [*BASE, "--data=data/star", "--lr=2e-4", "--max_steps=200"]
    preset.append(f"--init_from={base}/{{seed}}")
    runs = train_rows(config, out / "star", {"base": []}, preset)["base"]
    seeds, iterations, of = config.all_seeds(), 2 if config.steps else ITERATIONS, {}
    for row in tqdm([*TAUGHT, *STAR], "teaching", disable=None):
        makes = {runs / str(x): partial(teach, runs / str(x), row, iterations) for x in seeds}
        of[row] = over_seeds([remembered(run, f"star_{row}", makes[run]) for run in makes])
    last = {"base": of["star"][0]} | {row: x[-1] for row, x in of.items()}
    print_rows(f"after {iterations} iterations", last)
    lines = {row: {n: point["accuracy"] for n, point in enumerate(x)} for row, x in of.items()}
    labels = "iteration", "answers that are right"
    draw_lines(lines, labels, out / "star.png", "STaR: accuracy by iteration")
    return {**last, "by_iteration": of}


if __name__ == "__main__":
    run_studies(__doc__, star)

"""
STaR, the predecessor: a model learns from its own rationales that end in right answers. Its base
model can think aloud, but has read text that seldom does, so it rather guesses.

    python -m studies.star
"""

import random
import re
from functools import partial

import torch
from tqdm import tqdm

from beyond.star import Question, StarConfig, self_taught, write
from data.arithmetic.prepare import digits, running_sums
from lib.pictures import draw_lines, print_rows
from lib.runs import load_run
from studies.runs import BASE, prepare, run_studies, train_on, train_rows
from studies.tables import over_seeds, remembered, share

TRAIN, TEST, ITERATIONS = 2000, 1000, 8  # questions, iterations
ROWS = {  # settings of StarConfig
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


def split(text):
    """The steps and the answer in what was written, such as "—3154—4\\n" or "2\\n"; or None."""
    match = re.fullmatch(r"(?:—(\d+)—+)?(\d)\n", text)
    return match.groups() if match else (None, None)


def is_faithful(question, written, tokenizer):
    """Are the steps in what was written the true ones?"""
    asked = tokenizer.decode(question.prompt)[1:-1]
    return split(tokenizer.decode(written))[0] == running_sums(asked)


def judge(model, tokenizer, asked, config):
    """Of questions: accuracy; the share that is answered after steps; and of right answers, the
    share whose steps are all right."""
    texts = write(model, [q.prompt for q in asked], config, torch.Generator().manual_seed(0))
    right = [(q, x) for q, x in zip(asked, texts, strict=True) if config.read(x) == q.answer]
    return {
        "accuracy": len(right) / len(asked),
        "aloud_share": share(split(tokenizer.decode(x))[0] is not None for x in texts),
        "faithful_of_right": share(is_faithful(q, x, tokenizer) for q, x in right),
    }


def teach(run, row, how):
    """One row from one base model: [what `judge` says, by iteration], and the share of what was
    kept whose steps are all right. how: the settings of StarConfig that all rows share."""
    base, tokenizer, *_ = load_run(run)
    asked = questions(tokenizer, TRAIN, f"train {run.name}")
    test = [q for q in questions(tokenizer, TEST, "test") if q not in asked]
    how = {"end": tokenizer.encode("\n")[0], "seed": int(run.name), **how, **ROWS[row]}
    config = StarConfig(lambda ids: split(tokenizer.decode(ids))[1], **how)
    found = [judge(base, tokenizer, test, config)]
    for model, kept in self_taught(base, asked, config):
        faithful = share(is_faithful(*pair, tokenizer) for pair in kept)
        found.append(judge(model, tokenizer, test, config) | {"faithful_of_kept": faithful})
    return found


def star(config, out):
    """Does a model climb by its own right answers, and by right steps?"""
    prepare("data/aloud", chatter=0.0, mark=False, double=0.3, explicit=0.1)
    base = train_on("plain", config, out, {})["base"]
    preset = [*BASE, "--data=data/aloud", "--lr=2e-4", "--max_steps=200"]
    preset.append(f"--init_from={base}/{{seed}}")
    runs = train_rows(config, out / "star", {"base": []}, preset)["base"]
    seeds, iterations, of = config.all_seeds(), 2 if config.steps else ITERATIONS, {}
    # not greedy: the likeliest way to begin is the same for all questions
    how = {"iterations": iterations, "temperature": 1.0}
    for row in tqdm(ROWS, "teaching", disable=None):
        makes = {runs / str(x): partial(teach, runs / str(x), row, how) for x in seeds}
        of[row] = over_seeds([remembered(run, f"star_{row}", makes[run], **how) for run in makes])
    last = {"base": of["star"][0]} | {row: x[-1] for row, x in of.items()}
    print_rows(f"after {iterations} iterations", last)
    lines = {row: {n: point["accuracy"] for n, point in enumerate(x)} for row, x in of.items()}
    labels = "iteration", "answers that are right"
    draw_lines(lines, labels, out / "star.png", "STaR: accuracy by iteration")
    return {**last, "by_iteration": of}


if __name__ == "__main__":
    run_studies(__doc__, star)

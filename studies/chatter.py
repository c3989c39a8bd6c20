"""
REINFORCE teaches the model to say useful thoughts. On a text most of whose asides are idle ("hmm"),
most of the thoughts of the base model are idle as well, and some are steps of the sum. With
REINFORCE nearly all become steps. Without it the share stays what it was.

    python -m studies.chatter
"""

from functools import partial

import numpy as np

from beyond.kinds import ThinkingConfig, thinking_model
from data.arithmetic.prepare import running_sums
from eval import measure
from lib.runs import load_run, start_thoughts
from quiet_star import QuietSTaR
from studies.runs import CHATTER, run_studies, train_bases, train_rows
from studies.tables import held_out, measure_rows

ROWS = {
    "full": [],
    "without REINFORCE": ["--reinforce_weight=0"],
    "reinforce_weight 10": ["--reinforce_weight=10"],
    "negative advantages kept": ["--no-clamp_advantage"],
    "baseline: mean of all": ["--baseline=all"],
    "reward on the thought branch": ["--reward_on=thought"],
    "2 thoughts": ["--n_thoughts=2"],
    "8 thoughts": ["--n_thoughts=8"],
}


def useful_thoughts(run, text):
    """Of thoughts at answers, at temperature 1: the share that begins with the steps alone; the
    share of right answers; the mean gate. Of a base model: as it begins to think."""
    (spans, answers, meta), (model, tokenizer, *_) = text, load_run(run)
    if not isinstance(model, QuietSTaR):
        model = thinking_model(model, ThinkingConfig())
        start_thoughts(model, tokenizer, "—", "—")
    found, useful = measure(model, spans, meta, temperature=1.0), []
    for w, t in np.argwhere(answers):
        line = tokenizer.decode(spans[w, : t + 1].tolist()).split("\n")[-1]  # such as 3849=
        thought = tokenizer.decode(found.thoughts[w, t].tolist())
        useful.append(thought.startswith(running_sums(line[:-1])[: len(thought)]))
    right, gate = found.right_mixed[answers].mean(), found.gate[answers].mean()
    shares = {"useful_share": np.mean(useful), "answer_accuracy": right, "gate": gate}
    return {name: float(x) for name, x in shares.items()}


def chatter(config, out):
    """The share of useful thoughts at answers whose steps are left out."""
    folders = {"before training": out / "chatter_base"}
    preset = train_bases(config, out, CHATTER)
    folders |= train_rows(config, out / "chatter", ROWS, preset)
    rows = {name: (folder, {}) for name, folder in folders.items()}
    useful = partial(useful_thoughts, text=held_out(config, CHATTER))
    title = "Does REINFORCE choose useful thoughts?"
    return measure_rows(config, title, rows, useful, out / "chatter.png")


if __name__ == "__main__":
    run_studies(__doc__, chatter)

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
from studies.runs import run_studies, train_on
from studies.tables import held_out, measure_rows, questions_in

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
    for w, t, question in questions_in(spans, answers, tokenizer):
        thought = tokenizer.decode(found.thoughts[w, t].tolist())
        useful.append(thought.startswith(running_sums(question)[: len(thought)]))
    right, gate = found.right_mixed[answers], found.gate[answers]
    shares = {"useful_share": useful, "answer_accuracy": right, "gate": gate}
    return {name: float(np.mean(x)) for name, x in shares.items()}


def chatter(config, out):
    """The share of useful thoughts at answers whose steps are left out."""
    folders = train_on("chatter", config, out, ROWS)
    useful = partial(useful_thoughts, text=held_out(config, "chatter"))
    title = "Does REINFORCE choose useful thoughts?"
    return measure_rows(config, title, folders, out / "chatter.png", useful)


if __name__ == "__main__":
    run_studies(__doc__, chatter)

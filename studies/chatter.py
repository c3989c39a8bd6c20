"""
REINFORCE teaches the model to say useful thoughts. On a text most of whose asides are idle ("hmm"), most of the base
model's thoughts are idle as well, and some are steps of the sum. With REINFORCE nearly all become steps. Without it the
share stays what it was.

    python -m studies.chatter
"""

from functools import partial

import numpy as np
from tqdm import tqdm

from lib.pictures import draw_over_training
from studies.runs import CHATTER, over_training, run_studies, train_bases, train_rows
from studies.tables import keep_results, over_seeds, print_rows, remembered
from studies.thoughts import held_out_questions, useful_thoughts

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


def train_chatter(config, out, rows):
    """Rows of runs on the text with idle asides, each from the base model of its seed: as train_rows."""
    flags = [*train_bases(config, out, CHATTER), "--save_every=50", "--keep=99"]
    return train_rows(config, out / "chatter", rows, flags)


def chatter(config, out):
    """Table and picture of the share of useful thoughts over training, for the settings of ROWS."""
    runs, seeds = train_chatter(config, out, ROWS), config.all_seeds()
    tokenizer, rows, questions = held_out_questions(CHATTER)

    def measured(run):
        return [
            (step, useful_thoughts(model, tokenizer, rows, questions))
            for step, model in over_training(*run)
        ]

    found, results, curves = {}, {}, {}
    for key, run in tqdm(runs.items(), desc="measuring", unit="run", disable=None):
        found[key] = remembered(run[0], "useful_thoughts", partial(measured, run))
    for name in ROWS:
        of_seeds = [found[name, seed] for seed in seeds]
        start = over_seeds([points[0][1]["useful_share"] for points in of_seeds])
        end = over_seeds([points[-1][1] for points in of_seeds])
        results[name] = {"useful_at_start": start, **end}
        shares = [
            {step: measured["useful_share"] for step, measured in points} for points in of_seeds
        ]
        looked = sorted(
            set.intersection(*map(set, shares))
        )  # a run that was stopped has a checkpoint of its own
        curves[name] = looked, np.array([[share[step] for step in looked] for share in shares])
    title = f"{len(rows)} lines whose steps are left out, 4 thoughts each at temperature 1"
    title = f"{title}; mean and spread over seeds {config.seeds}"
    print_rows(title, results, ("useful_at_start", "useful_share", "answer_accuracy", "gate"))
    first, without = results["full"], results["without REINFORCE"]
    ends = {
        "start": first["useful_at_start"]["mean"],
        "end": first["useful_share"]["mean"],
        "end_without_reinforce": without["useful_share"]["mean"],
    }
    keep_results(out, "chatter", {"useful_share": ends, "rows": results})
    title = "Does REINFORCE choose useful thoughts?"
    draw_over_training(curves, "share of useful thoughts", out / "chatter.png", title)


if __name__ == "__main__":
    run_studies(__doc__, chatter)

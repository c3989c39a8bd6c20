"""
It is the thought that helps, not the further training, and not the computation: those alone bring
next to nothing. With random thoughts, or those of another place, the trained model does worse than
the base model.

    python -m studies.controls
"""

from functools import partial

import numpy as np

from eval import measure
from studies.memory import tokens_read
from studies.runs import FULL, run_studies, train_on
from studies.tables import held_out, measure_rows, scores_of
from train import settings_from


def of_other_positions(thoughts, answers, seed=0):
    """Thoughts (W, T, m), each moved to another position. Those at answers (W, T), bool, change
    places with each other, so each is about some question, but another one. So do the others."""
    moved, rng = thoughts.copy(), np.random.default_rng(seed)
    for some in (answers, ~answers):
        places = rng.permutation(np.argwhere(some))
        moved[tuple(places.T)] = thoughts[tuple(np.roll(places, 1, axis=0).T)]
    return moved


def controls(config, out):
    """Is it the thought that helps?"""
    train, _, quiet, _ = settings_from([])
    compute = round(1 + train.think_share * tokens_read(quiet))
    rows = FULL | {
        "lm_same_tokens": ["--objective=lm"],
        "lm_same_compute": ["--objective=lm", f"--max_steps={compute * train.max_steps}"],
        "pause": ["--thought_len=0"],
        "trained_on_random_thoughts": ["--thought_temperature=1e9", "--reinforce_weight=0"],
        "reinforce_weight_0": ["--reinforce_weight=0"],
        "full_everywhere": ["--think_at=all"],
    }
    folders = train_on("plain", config, out, rows)
    text = spans, answers, meta = held_out(config, "plain")
    shape, rng = (*answers.shape, quiet.thought_len), np.random.default_rng(0)

    def of_others(model):
        return of_other_positions(measure(model, spans, meta).thoughts, answers)

    at_last = {
        "random_thoughts": {"thoughts": rng.choice(np.unique(spans), shape)},
        "another_positions_thoughts": {"thoughts": of_others},
        "gate_0": {"gate": 0.0},
        "gate_1": {"gate": 1.0},
    }
    folders |= dict.fromkeys(at_last, folders["full"])
    any_tokens = {"thoughts": rng.choice(meta["vocab_size"], shape)}
    how = at_last | {"trained_on_random_thoughts": any_tokens}
    title = f"{answers.sum():,} answers of sums whose steps are left out"
    scores = partial(scores_of, text=text)
    return measure_rows(config, title, folders, out / "controls.png", scores, how)


if __name__ == "__main__":
    run_studies(__doc__, controls)

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
from studies.runs import FULL, PLAIN, SETTINGS, max_steps, run_studies, train_bases, train_rows
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
    train, _, quiet, _ = settings_from(SETTINGS[PLAIN])
    compute = round(tokens_read(quiet, train.think_share))
    runs = FULL | {
        "lm_same_tokens": ["--objective=lm"],
        "lm_same_compute": ["--objective=lm", max_steps(config, times=compute)],
        "pause": ["--thought_len=0"],
        "trained_on_random_thoughts": ["--thought_temperature=1e9", "--reinforce_weight=0"],
        "reinforce_weight_0": ["--reinforce_weight=0"],
        "full_everywhere": ["--think_at=all"],
        "full_bfloat16": ["--dtype=bfloat16"],
    }
    train_rows(config, out, runs, train_bases(config, out))
    text = spans, answers, meta = held_out(config)
    shape, rng = (*answers.shape, quiet.thought_len), np.random.default_rng(0)

    def of_others(model):
        return of_other_positions(measure(model, spans, meta).thoughts, answers)

    rows = {name: (out / name, {}) for name in ("base", *runs)}
    rows["trained_on_random_thoughts"][1]["thoughts"] = rng.choice(meta["vocab_size"], shape)
    rows |= {
        "random_thoughts": (out / "full", {"thoughts": rng.choice(np.unique(spans), shape)}),
        "another_positions_thoughts": (out / "full", {"thoughts": of_others}),
        "gate_0": (out / "full", {"gate": 0.0}),
        "gate_1": (out / "full", {"gate": 1.0}),
    }
    title = f"{answers.sum():,} answers of sums whose steps are left out"
    scores = partial(scores_of, text=text)
    return measure_rows(config, title, rows, scores, out / "controls.png")


if __name__ == "__main__":
    run_studies(__doc__, controls)

"""
It is the thought that helps: not the further training, and not the computation. As many steps of language modelling, as
much computation, thoughts without tokens, and training on random thoughts bring next to nothing. With random thoughts,
or those of another place, the trained model does worse than the base model.

    python -m studies.controls
"""

import numpy as np

from eval import measure
from studies.runs import PLAIN, SETTINGS, max_steps, run_studies, tokens_read, train_miniatures
from studies.tables import held_out, table_of_runs


def of_other_positions(thoughts, answers, seed=0):
    """Thoughts (W, T, m), each moved to another position: those at answers change places with each other, so that each
    is a thought about some question, but not about this one. Those elsewhere change places with each other, too."""
    moved, rng = thoughts.copy(), np.random.default_rng(seed)
    for some in (answers, ~answers):
        places = rng.permutation(np.argwhere(some))
        moved[tuple(places.T)] = thoughts[tuple(np.roll(places, 1, axis=0).T)]
    return moved


def controls(config, out):
    """The table of controls, and a picture of it."""
    compute = round(tokens_read(SETTINGS[PLAIN]))
    runs = {
        "full": [],
        "lm_same_tokens": ["--objective=lm"],
        "lm_same_compute": ["--objective=lm", max_steps(config, times=compute)],
        "pause": ["--thought_len=0"],
        "trained_on_random_thoughts": ["--thought_temperature=1e9", "--reinforce_weight=0"],
        "reinforce_weight_0": ["--reinforce_weight=0"],
        "full_everywhere": ["--think_at=all"],
        "full_bfloat16": ["--dtype=bfloat16"],
    }
    train_miniatures(config, out, runs)
    text = held_out(config)
    spans, answers, meta = text

    def random(tokens):
        return lambda model: np.random.default_rng(0).choice(
            tokens, (*answers.shape, model.config.thought_len)
        )

    def others(model):
        return of_other_positions(measure(model, spans, meta).thoughts, answers)

    full, of_this_text = (
        out / "full",
        random(np.unique(spans)),
    )  # the model has never seen the other tokens
    rows = {
        name: (out / name, {}) for name in ("base", "lm_same_tokens", "lm_same_compute", "pause")
    } | {
        "trained_on_random_thoughts": (
            out / "trained_on_random_thoughts",
            {"thoughts": random(meta["vocab_size"])},
        ),
        "random_thoughts": (full, {"name": "scores_random_thoughts", "thoughts": of_this_text}),
        "another_positions_thoughts": (
            full,
            {"name": "scores_others_thoughts", "thoughts": others},
        ),
        "gate_0": (full, {"name": "scores_gate_0", "gate": 0.0}),
        "gate_1": (full, {"name": "scores_gate_1", "gate": 1.0}),
    }
    rows |= {
        name: (out / name, {})
        for name in ("reinforce_weight_0", "full", "full_everywhere", "full_bfloat16")
    }
    title = f"{answers.sum():,} answers of sums whose steps are left out"
    table_of_runs(config, out, "controls", title, text, rows)
    print(f"lm_same_compute: {compute} times the steps of lm_same_tokens")


if __name__ == "__main__":
    run_studies(__doc__, controls)

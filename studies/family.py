"""
The papers around Quiet-STaR, each a few flags away (docs/family.md): what each is worth on the text
of the demo, most of whose asides are idle.

    python -m studies.family
"""

from functools import partial

from studies.runs import run_studies, train_on
from studies.tables import held_out, measure_rows, scores_of

VECTORS = ["--reinforce_weight=0", "--n_thoughts=1"]
ROWS = {
    "full": [],
    "without REINFORCE": ["--reinforce_weight=0"],
    "pause": ["--thought_len=0"],
    "star": ["--credit=star"],
    "posterior": ["--credit=posterior"],
    "rlp": ["--reward_on=thought", "--no-clamp_advantage", "--mixing=none"],
    "soft": ["--thought_kind=soft", *VECTORS],
    "latent": ["--thought_kind=latent", *VECTORS],
    "any_length": ["--thought_kind=any_length"],
}


def family(config, out):
    """The papers around this one: right answers after one sampled thought."""
    folders = train_on("chatter", config, out, ROWS)
    scores = partial(scores_of, text=held_out(config, "chatter"), temperature=1.0)
    title = "ideas of other papers, one sampled thought"
    return measure_rows(config, title, folders, out / "family.png", scores)


if __name__ == "__main__":
    run_studies(__doc__, family)

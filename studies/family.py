"""
The papers around Quiet-STaR, each a few flags away (docs/family.md): what each is worth on the text
of the miniature, and on the text most of whose asides are idle.

    python -m studies.family
"""

from functools import partial

from studies.runs import CHATTER, FULL, run_studies, train_bases, train_rows
from studies.tables import held_out, measure_rows, scores_of

VECTORS = ["--reinforce_weight=0", "--n_thoughts=1"]
ON_BOTH = {
    "star": ["--credit=star"],
    "posterior": ["--credit=posterior"],
    "rlp": ["--reward_on=thought", "--no-clamp_advantage", "--mixing=none"],
    "soft": ["--thought_kind=soft", *VECTORS],
    "latent": ["--thought_kind=latent", *VECTORS],
}
ON_CHATTER = {"full": [], "without REINFORCE": ["--reinforce_weight=0"], **ON_BOTH}
ON_PLAIN = {
    "pause": ["--thought_len=0"],
    **FULL,
    "others": ["--no-clamp_advantage"],
    "all": ["--no-clamp_advantage", "--baseline=all"],
    "random": ["--think_at=random"],
    **ON_BOTH,
}


def family(config, out):
    """The papers around this one, on two texts."""
    train_rows(config, out, ON_PLAIN, train_bases(config, out))
    rows = {name: (out / name, {}) for name in ("base", *ON_PLAIN)}
    title, scores = "plain text, greedy thoughts", partial(scores_of, text=held_out(config))
    plain = measure_rows(config, title, rows, scores, out / "family.png")
    preset = train_bases(config, out, CHATTER)
    folders = train_rows(config, out / "chatter", ON_CHATTER, preset)
    rows = {name: (folder, {"temperature": 1.0}) for name, folder in folders.items()}
    title, scores = "idle chatter", partial(scores_of, text=held_out(config, CHATTER))
    noisy = measure_rows(config, title, rows, scores, out / "family_chatter.png")
    return {**plain, "on_chatter": noisy}


if __name__ == "__main__":
    run_studies(__doc__, family)

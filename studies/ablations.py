"""
On this text it matters little how many true tokens a thought is judged by (n_true), and how many thoughts are sampled
at each position (n_thoughts).

    python -m studies.ablations
"""

from studies.runs import run_studies, train_miniatures
from studies.tables import held_out, table_of_runs
from train import settings_from


def ablations(config, out):
    """n_true and n_thoughts, each with everything else as it is by default."""
    default = settings_from([])[2]
    rows = {
        f"{name} {n}": [] if n == getattr(default, name) else [f"--{name}={n}"]
        for name in ("n_true", "n_thoughts")
        for n in (1, 2, 4)
    }
    trained = {name if flags else "full": flags for name, flags in rows.items()}
    train_miniatures(config, out, trained)
    measured = {name: (out / (name.replace(" ", "_") if flags else "full"), {}) for name, flags in rows.items()}
    table_of_runs(config, out, "ablations", "ablations", held_out(config), measured)


if __name__ == "__main__":
    run_studies(__doc__, ablations)

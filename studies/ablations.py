"""
On this text it matters little how many true tokens a thought is judged by (n_true), and how many thoughts are sampled
at each position (n_thoughts).

    python -m studies.ablations
"""

from tqdm import tqdm

from lib.pictures import draw_bars
from studies.runs import run_studies, train_miniatures
from studies.tables import SCORES, held_out, keep_results, print_rows, scores_of
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
    text = held_out(config)
    rows = {
        name: scores_of(config, out / (name.replace(" ", "_") if flags else "full"), text)
        for name, flags in tqdm(rows.items(), desc="measuring", disable=None)
    }
    print_rows(f"ablations; mean and spread over seeds {config.seeds}", rows, SCORES)
    keep_results(out, "ablations", rows)
    draw_bars(rows, "answer_accuracy", "answers that are right", out / "ablations.png")


if __name__ == "__main__":
    run_studies(__doc__, ablations)

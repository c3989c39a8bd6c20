"""
A model can tell where a thought will help. Thinking at only 7% of the positions, those where the
gain head expects most, keeps nearly the whole gain in answers, and is several times as fast.

    python -m studies.adaptive
"""

from functools import partial

import numpy as np
import torch

from beyond.adaptive import think_some, worth_its_price
from eval import measure
from fast import entropy
from lib.pictures import draw_lines
from lib.runs import load_run
from quiet_star import generate_with_thoughts
from studies.bench import fastest
from studies.runs import FULL, run_studies, train_on
from studies.tables import held_out, over_seeds, print_rows

SHARES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BUDGET = 0.07  # share of positions for which a price is chosen


def accuracy_where(think, found, answers):
    """The share of answers that are right, if the model thinks where `think` (W, T) says so."""
    return float(np.where(think, found.right_mixed, found.right_base)[answers].mean())


def measure_seed(run, text, seed):
    """Of one model: accuracy by how the positions that think are chosen; and with a price that is
    chosen on one half of the text, what it keeps on the other half, and what it saves."""
    spans, answers, meta = text
    quiet, half = load_run(run)[0], len(spans) // 2
    found = measure(quiet, spans, meta)
    with torch.no_grad():
        uncertainty = entropy(quiet.model.output, quiet.model(torch.from_numpy(spans[:, :-1])))
    chance = np.random.default_rng(seed).random(answers.shape)
    scores = {"gain head": found.expected_gain, "base entropy": uncertainty, "random": chance}
    by_share = {}
    for share in SHARES:  # think where the score is highest
        least = {name: np.quantile(score, 1 - share) for name, score in scores.items()}
        thinks = {name: (score > least[name]) | (share == 1) for name, score in scores.items()}
        by_share[share] = {x: accuracy_where(thinks[x], found, answers) for x in scores}

    least, judged = np.quantile(found.expected_gain[:half], 1 - BUDGET), answers.copy()
    judged[:half] = False
    thinks, price = found.expected_gain > least, float(least) / (quiet.config.thought_len + 2)
    nowhere, there, everywhere = (accuracy_where(x, found, judged) for x in (False, thinks, True))
    write = partial(generate_with_thoughts, quiet, torch.from_numpy(spans[:1, :16]), 200)
    where_it_pays = partial(write, think=think_some(worth_its_price(quiet, price)))
    seconds = fastest({"everywhere": write, "where it pays": where_it_pays}, repeats=3)
    kept = {
        "price": price,
        "share_thinking": float(thinks[half:].mean()),
        "gain_kept": (there - nowhere) / (everywhere - nowhere) if everywhere > nowhere else None,
        "speedup": seconds["everywhere"] / seconds["where it pays"],
    }
    return {"kept": kept, "by_share": by_share}


def adaptive(config, out):
    """Accuracy by the share of positions that think; and how much faster a text is written."""
    folder = train_on("plain", config, out, FULL)["full"]
    text, seeds = held_out(config, "plain"), config.all_seeds()
    found = over_seeds([measure_seed(folder / str(seed), text, seed) for seed in seeds])
    kept, by_share = found["kept"], found["by_share"]
    print_rows("thinking where the gain head expects it to pay", {"": kept})
    rows = {f"{share:.0%}": row for share, row in by_share.items()}
    print_rows("answers that are right, by the share that thinks", rows)
    lines = {name: {share: by_share[share][name] for share in SHARES} for name in by_share[1.0]}
    labels = "share of positions that think", "answers that are right"
    draw_lines(lines, labels, out / "adaptive.png", "Thinking only where it pays")
    return {**kept, "answer_accuracy_by_share": rows}


if __name__ == "__main__":
    run_studies(__doc__, adaptive)

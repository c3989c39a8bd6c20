"""
A model can tell where a thought will help. Thinking at only 7% of the positions, those where the
gain head expects most, keeps nearly the whole gain in answers, and is several times as fast.

    python -m studies.adaptive
"""

from functools import partial
from itertools import product

import numpy as np
import torch

from beyond.adaptive import think_some, worth_its_price
from eval import measure
from fast import entropy
from lib.pictures import draw_lines, print_rows
from lib.runs import load_run
from quiet_star import generate_with_thoughts
from studies.bench import fastest
from studies.runs import FULL, run_studies, train_on
from studies.tables import held_out, over_seeds

SHARES = (0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
BUDGET = 0.07  # the share of positions by which a price is chosen


def measure_seed(run, text, seed):
    """Of one model: accuracy by how the positions that think are chosen, where a score is highest;
    and of one price, what it keeps and what it saves. How high a score must be is read off the
    first half of the text, and judged on the other half."""
    spans, answers, meta = text
    quiet, half = load_run(run)[0], len(spans) // 2
    found = measure(quiet, spans, meta)
    with torch.no_grad():
        uncertainty = entropy(quiet.model.output, quiet.model(torch.from_numpy(spans[:, :-1])))
    scores = {"gain head": found.expected_gain, "base entropy": np.asarray(uncertainty)}
    scores["random"] = np.random.default_rng(seed).random(answers.shape)
    by_share, judged = {share: {} for share in SHARES}, answers.copy()
    judged[:half] = False
    for share, (name, score) in product(SHARES, scores.items()):
        least = np.quantile(score[:half], 1 - share) if 0 < share < 1 else np.inf * (0.5 - share)
        right = np.where(score > least, found.right_mixed, found.right_base)
        by_share[share][name] = float(right[judged].mean())

    least = np.quantile(found.expected_gain[:half], 1 - BUDGET)
    price = float(least) / (quiet.config.thought_len + 2)
    write = partial(generate_with_thoughts, quiet, torch.from_numpy(spans[:1, :16]), 200)
    where_it_pays = partial(write, think=think_some(worth_its_price(quiet, price)))
    seconds = fastest({"everywhere": write, "where it pays": where_it_pays}, repeats=3)
    nowhere, there, everywhere = (by_share[x]["gain head"] for x in (0.0, BUDGET, 1.0))
    kept = {
        "price": price,
        "share_thinking": float((found.expected_gain[half:] > least).mean()),
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

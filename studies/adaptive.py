"""
A model can tell where a thought will help. Thinking at only 7% of the positions, those where the gain head expects the
most, keeps nearly the whole gain in answers. It is several times as fast as thinking everywhere.

    python -m studies.adaptive
"""

import numpy as np
import torch
from tqdm import tqdm

from data.dataset import open_dataset
from eval import measure
from lean.log_prob import entropy
from lib.pictures import draw_lines
from lib.runs import load_run
from studies.bench import seconds_per_token
from studies.runs import run_studies, train_miniatures
from studies.tables import held_out, keep_results, over_seeds, print_rows

SHARES = (0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1, 0.12, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
BUDGET = 0.07  # share of positions for which a threshold is chosen (on half of the held-out text; judged on the other)


@torch.no_grad()
def base_uncertainty(model, spans, batch_size=32):
    """Of the prediction of each token of spans (W, T+1) without a thought, (W, T): its entropy in nats, and the
    probability that its likeliest token is wrong."""
    parts = [model.model(part) for part in torch.from_numpy(spans[:, :-1]).split(batch_size)]
    entropies = [entropy(model.model.output, h).numpy() for h in parts]
    wrong = [1 - model.model.logits(h).softmax(-1).amax(-1).numpy() for h in parts]
    return {"base entropy": np.concatenate(entropies), "p(base is wrong)": np.concatenate(wrong)}


def accuracy_where(think, found, answers, some=slice(None)):
    """Share of answers that are right if the model thinks where `think` (W, T) says so; on some spans."""
    return float(np.where(think, found.right_mixed, found.right_base)[some][answers[some]].mean())


def accuracy_by_share(score, found, answers):
    """The same for each of SHARES, if the model thinks where score (W, T) is highest."""
    return [accuracy_where(score >= np.quantile(score, 1 - share), found, answers) for share in SHARES]


def gain_kept(think, found, answers, some=slice(None)):
    """The share that is kept of the accuracy that thinking everywhere gains, if the model thinks where `think` says so;
    on some spans. None if it gains nothing."""
    nowhere, there, everywhere = (accuracy_where(x, found, answers, some) for x in (False, think, True))
    return (there - nowhere) / (everywhere - nowhere) if everywhere > nowhere else None


def adaptive(config, out):
    """Accuracy against the share of positions that think; and how much faster a text is read, token by token, than when
    the model thinks everywhere."""
    runs, (spans, answers, meta) = train_miniatures(config, out, {"full": []}), held_out(config)
    half, of_seeds, curves = len(spans) // 2, [], []
    chosen_on, judged_on = slice(half), slice(half, None)
    text = torch.from_numpy(open_dataset("data/arithmetic", "val").tokens[None, :400].astype(np.int64))
    for seed in tqdm(config.all_seeds(), desc="measuring", unit="seed", disable=None):
        model = load_run(runs["full", seed][0], "cpu")[0]
        found = measure(model, spans, meta)
        predictors = {
            "gain head": found.expected_gain,
            **base_uncertainty(model, spans),
            "random": np.random.default_rng(seed).random(answers.shape),
        }
        curves.append({name: accuracy_by_share(score, found, answers) for name, score in predictors.items()})
        think_above = float(np.quantile(found.expected_gain[chosen_on], 1 - BUDGET))
        thinks, gain = found.expected_gain > think_above, found.nll_base - found.nll_mixed
        price = think_above / (model.config.thought_len + 2)
        seconds = seconds_per_token(model, text, price)
        of_seeds.append(
            {
                "price": price,
                "share_thinking": float(thinks[judged_on].mean()),
                "gain_kept": gain_kept(thinks, found, answers, judged_on),
                "nats_kept": float((gain * thinks)[judged_on].sum() / gain[judged_on].sum()),
                "speedup": seconds["everywhere"] / seconds["where_it_pays"],
                "everywhere_over_nowhere": seconds["everywhere"] / seconds["nowhere"],
            }
        )
    found, curves = over_seeds(of_seeds), over_seeds(curves)
    title = f"mean and spread over seeds {config.seeds}"
    print_rows(f"thinking where the gain head expects it to pay; {title}", {"": found}, list(found))
    rows = {f"{share:.0%} think": {name: line[i] for name, line in curves.items()} for i, share in enumerate(SHARES)}
    print_rows(f"answers that are right, by how the positions that think are chosen; {title}", rows, list(curves))
    means = {name: x and x["mean"] for name, x in found.items()}
    keep_results(out, "adaptive", {**means, "over_seeds": found, "shares": SHARES, "answer_accuracy_by": curves})
    lines = {name: dict(zip(SHARES, line, strict=True)) for name, line in curves.items()}
    labels = "share of positions that think", "answers that are right"
    draw_lines(lines, labels, out / "adaptive.png", "Thinking only where it pays")


if __name__ == "__main__":
    run_studies(__doc__, adaptive)

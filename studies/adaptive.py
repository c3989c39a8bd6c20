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
from lib.pictures import draw_lines
from lib.runs import load_run
from studies.bench import seconds_per_token
from studies.runs import PLAIN, run_studies, train_miniatures
from studies.tables import held_out, keep_results, over_seeds, print_rows

SHARES = (
    0,
    0.01,
    0.02,
    0.03,
    0.04,
    0.05,
    0.06,
    0.07,
    0.08,
    0.1,
    0.12,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    1,
)
ROWS, SHARE_IN_ROWS = (
    (1, 8, 32),
    0.09,
)  # texts at once; where it is timed, the model thinks at this share of positions
BUDGET = 0.07  # share of positions for which a threshold is chosen (on half of the held-out text; judged on the other)


@torch.no_grad()
def base_uncertainty(model, spans, batch_size=32):
    """Of the prediction of each token of spans (W, T+1) without a thought, (W, T): its entropy in nats, and the
    probability that its likeliest token is wrong."""
    parts = torch.from_numpy(spans[:, :-1]).split(batch_size)
    log_p = [model.model.logits(model.model(part)).log_softmax(-1) for part in parts]
    entropies = [-(x.exp() * x).sum(-1).numpy() for x in log_p]
    wrong = [1 - x.amax(-1).exp().numpy() for x in log_p]
    return {"base entropy": np.concatenate(entropies), "p(base is wrong)": np.concatenate(wrong)}


def accuracy_where(think, found, answers, some=slice(None)):
    """Share of answers that are right if the model thinks where `think` (W, T) says so; on some spans."""
    return float(np.where(think, found.right_mixed, found.right_base)[some][answers[some]].mean())


def accuracy_by_share(score, found, answers):
    """The same for each of SHARES, if the model thinks where score (W, T) is highest."""
    return [
        accuracy_where(score >= np.quantile(score, 1 - share), found, answers) for share in SHARES
    ]


def gain_kept(think, found, answers, some=slice(None)):
    """The share that is kept of the accuracy that thinking everywhere gains, if the model thinks where `think` says so;
    on some spans. None if it gains nothing."""
    nowhere, there, everywhere = (
        accuracy_where(x, found, answers, some) for x in (False, think, True)
    )
    return (there - nowhere) / (everywhere - nowhere) if everywhere > nowhere else None


def seconds_over_plain(model, text, price):
    """Of reading a text (B, T) token by token: `seconds_per_token`, over those without thoughts."""
    found = seconds_per_token(model, text, price)
    over = {
        key: found[key] / found["nowhere"] for key in ("everywhere", "where_it_pays", "waiting")
    }
    return {**over, "share_thinking": found["share_thinking"]}


def adaptive(config, out):
    """Accuracy against the share of positions that think; and how much faster a text is read, token by token, than when
    the model thinks everywhere."""
    runs, (spans, answers, meta) = train_miniatures(config, out, {"full": []}), held_out(config)
    half, of_seeds, curves, costs = len(spans) // 2, [], [], []
    chosen_on, judged_on = slice(half), slice(half, None)
    text = open_dataset(PLAIN, "val").tokens[: 400 * max(ROWS)].astype(np.int64)
    text = torch.from_numpy(text).view(-1, 400)
    for seed in tqdm(config.all_seeds(), desc="measuring", unit="seed", disable=None):
        model = load_run(runs["full", seed][0], "cpu")[0]
        found = measure(model, spans, meta)
        predictors = {
            "gain head": found.expected_gain,
            **base_uncertainty(model, spans),
            "random": np.random.default_rng(seed).random(answers.shape),
        }
        curves.append(
            {name: accuracy_by_share(score, found, answers) for name, score in predictors.items()}
        )
        think_above, in_rows = np.quantile(
            found.expected_gain[chosen_on], [1 - BUDGET, 1 - SHARE_IN_ROWS]
        ).tolist()
        thinks, gain = found.expected_gain > think_above, found.nll_base - found.nll_mixed
        price, in_rows = (x / (model.config.thought_len + 2) for x in (think_above, in_rows))
        seconds = seconds_per_token(model, text[:1], price)
        costs.append(
            {
                f"{rows} texts at once": seconds_over_plain(model, text[:rows], in_rows)
                for rows in ROWS
            }
        )
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
    found, curves, costs = map(over_seeds, (of_seeds, curves, costs))
    title = f"mean and spread over seeds {config.seeds}"
    print_rows(f"thinking where the gain head expects it to pay; {title}", {"": found}, list(found))
    about = "seconds of reading texts token by token, over those without thoughts"
    print_rows(
        f"{about}; {title}", costs, ("everywhere", "where_it_pays", "waiting", "share_thinking")
    )
    rows = {
        f"{share:.0%} think": {name: line[i] for name, line in curves.items()}
        for i, share in enumerate(SHARES)
    }
    print_rows(
        f"answers that are right, by how the positions that think are chosen; {title}",
        rows,
        list(curves),
    )
    means = {name: x and x["mean"] for name, x in found.items()}
    more = {"in_rows": costs, "shares": SHARES, "answer_accuracy_by": curves}
    keep_results(out, "adaptive", {**means, "over_seeds": found, **more})
    lines = {name: dict(zip(SHARES, line, strict=True)) for name, line in curves.items()}
    labels = "share of positions that think", "answers that are right"
    draw_lines(lines, labels, out / "adaptive.png", "Thinking only where it pays")


if __name__ == "__main__":
    run_studies(__doc__, adaptive)

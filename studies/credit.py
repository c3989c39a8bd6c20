"""
Which credit for thoughts points where the expected reward grows, and how noisy is it? All 256 thoughts of two tokens
are read at answers of the text with idle asides, so the exact gradient is known.

    python -m studies.credit
"""

from functools import partial

import torch
from lean.log_prob import likeliest, token_log_prob
from tqdm import tqdm

from beyond.kinds import posterior_weight
from lib.pictures import picture
from quiet_star import thought_advantage
from studies.chatter import ROWS, train_chatter
from studies.runs import CHATTER, over_training, run_studies
from studies.tables import keep_results, over_seeds, print_rows, remembered
from studies.thoughts import held_out_questions

CREDITS = {  # of thoughts with rewards (draws, N), which became right (draws, N): (draws, N)
    "others": lambda reward, right: thought_advantage(reward, False),
    "all": lambda reward, right: thought_advantage(reward, False, "all"),
    "none": lambda reward, right: thought_advantage(reward, False, "none"),
    "clamped": lambda reward, right: thought_advantage(reward, True),
    "star": lambda reward, right: right,
    "posterior": lambda reward, right: posterior_weight(reward),
}
THOUGHTS = (2, 4, 8)
PLACES, DRAWS = 24, 4000


@torch.no_grad()
def enumerate_thoughts(model, rows, V):
    """Every thought of two tokens before the last token of rows (W, L): log p(t_1) (W, V), log p(t_2 | t_1) (W, V, V),
    the reward of each (W, V * V), and whether the true token became the likeliest."""
    model = model.with_settings(thought_len=2, n_true=1)
    every = torch.cartesian_prod(torch.arange(V), torch.arange(V))  # (V * V, 2)
    head, found = model.model.output, []
    for row in tqdm(rows[:, None], desc="enumerating", leave=False, disable=None):
        thoughts = model.think(row, every[None, :, None], torch.tensor([[row.shape[1] - 2]]))
        h, true = model.talk(thoughts.h_base, thoughts.h_thought)[0][0, :, 0, 0], row[0, -1]
        log_p = [
            model.model.logits(thoughts.h_policy[0, :, 0, s]).double().log_softmax(-1)
            for s in (0, 1)
        ]
        reward = token_log_prob(head, h, true.expand(len(h))) - token_log_prob(
            head, thoughts.h_base[0, 0, 0, 0], true
        )
        found.append(
            (log_p[0][0], log_p[1][::V], reward.double(), (likeliest(head, h) == true).double())
        )
    return [torch.stack(x) for x in zip(*found, strict=True)]


def score_functions(log_p1, log_p2):
    """d log p(thought) / d the logits that it was sampled from, of every thought: (V * V, V + V * V)."""
    V = len(log_p1)
    first = torch.eye(V, dtype=torch.double) - log_p1.exp()  # (V, V) by t_1
    second = torch.eye(V, dtype=torch.double) - log_p2.exp()[:, None]  # (V, V, V) by t_1, t_2
    found = torch.zeros(V, V, V + V * V, dtype=torch.double)
    found[:, :, :V] = first[:, None]
    for t in range(V):
        found[t, :, V + t * V : V + (t + 1) * V] = second[t]
    return found.flatten(0, 1)


def judge_credits(log_p1, log_p2, reward, right, generator):
    """At one place: how far each credit's mean gradient is from the exact one of the expected reward, (cosine, relative
    distance), and its noise: standard deviation over length of the mean. {(credit, N): (..)}."""
    score = score_functions(log_p1, log_p2)
    p = (log_p1[:, None] + log_p2).flatten().exp()
    exact = (p * reward) @ score
    found = {}
    for N in THOUGHTS:
        others = torch.multinomial(p, 256 * (N - 1), replacement=True, generator=generator).view(
            1, 256, N - 1
        )
        mine = torch.arange(len(p))[:, None, None].expand(-1, 256, 1)
        groups = torch.cat((mine, others.expand(len(p), -1, -1)), dim=2).flatten(
            0, 1
        )  # each thought among 256 groups
        draws = torch.multinomial(p, DRAWS * N, replacement=True, generator=generator).view(
            DRAWS, N
        )
        for name, credit in CREDITS.items():
            weight = credit(reward[groups], right[groups])[:, 0].view(len(p), 256).mean(1)
            mean = (p * weight) @ score
            each = torch.einsum("dn,dnk->dk", credit(reward[draws], right[draws]) / N, score[draws])
            variance = ((each - mean) ** 2).sum(1).mean()
            cosine = torch.cosine_similarity(mean, exact, dim=0)
            distance = (mean - exact).norm() / exact.norm()
            found[f"{name}, {N}"] = {
                "cosine": float(cosine),
                "bias": float(distance),
                "noise": float(variance.sqrt() / mean.norm()),
            }
    return found


def credit(config, out):
    """Bias and noise of each credit, for 2, 4 and 8 thoughts, beside the exact gradient of the expected reward."""
    runs = train_chatter(config, out, {"full": ROWS["full"]})
    tokenizer, rows, _ = held_out_questions(CHATTER)

    def measured(run):
        *_, (_, model) = (
            x for x in over_training(*run) if x[0] <= 100
        )  # while it learns: the gate is open
        places = enumerate_thoughts(model, rows[:PLACES], tokenizer.vocab_size)
        generator = torch.Generator().manual_seed(0)
        found = [judge_credits(*x, generator) for x in zip(*places, strict=True)]
        return {
            row: {key: sum(x[row][key] for x in found) / len(found) for key in x0}
            for row, x0 in found[0].items()
        }

    of_seeds = [
        remembered(run[0], "credit", partial(measured, run))
        for run in tqdm(runs.values(), disable=None)
    ]
    found, columns = over_seeds(of_seeds), ("cosine", "bias", "noise")
    title = f"the gradient of the expected reward at {PLACES} answers, by all {tokenizer.vocab_size**2:,} thoughts"
    print_rows(f"{title}; mean and spread over seeds {config.seeds}", found, columns)
    keep_results(out, "credit", found)
    with picture(out / "credit.png", 6, 4, title="Credit for thoughts: bias and noise") as (axes,):
        for name in CREDITS:
            points = [found[f"{name}, {N}"] for N in THOUGHTS]
            if any(
                point["noise"] is None for point in points
            ):  # star, where no thought is right: its mean is 0
                continue
            x, y = ([point[key]["mean"] for point in points] for key in ("cosine", "noise"))
            axes.plot(x, y, marker="o", ms=4, label=name)
            for N, *at in zip(THOUGHTS, x, y, strict=True):
                axes.annotate(str(N), at, size=7)
        axes.set(
            xlabel="cosine of its mean with the exact gradient", ylabel="noise / length of its mean"
        )


if __name__ == "__main__":
    run_studies(__doc__, credit)

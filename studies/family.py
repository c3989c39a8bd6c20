"""
The papers around Quiet-STaR, each a few flags away (docs/family.md): what each is worth on the miniature's text, and on
the text most of whose asides are idle.

    python -m studies.family
"""

from functools import partial

import torch
from lean.log_prob import token_log_prob
from tqdm import tqdm

from lib.pictures import draw_bars
from lib.runs import load_run
from studies.chatter import ROWS, train_chatter
from studies.runs import CHATTER, PLAIN, run_studies, train_miniatures
from studies.tables import (
    SCORES,
    held_out,
    keep_results,
    measure_rows,
    over_seeds,
    print_rows,
    remembered,
)
from studies.thoughts import held_out_questions

VECTORS = ["--reinforce_weight=0", "--n_thoughts=1"]
ON_PLAIN = {  # from the base models of the plain text
    "full": [],
    "others": ["--no-clamp_advantage"],
    "all": ["--no-clamp_advantage", "--baseline=all"],
    "star": ["--credit=star"],
    "posterior": ["--credit=posterior"],
    "rlp": ["--reward_on=thought", "--no-clamp_advantage", "--mixing=none"],
    "wrong": ["--think_at=wrong"],
    "random": ["--think_at=random"],
    "each_document": ["--think_at=each_document", "--think_share=0.07"],
    "soft": ["--thought_kind=soft", *VECTORS],
    "latent": ["--thought_kind=latent", *VECTORS],
}
ON_CHATTER = {  # beside those of studies/chatter.py
    name: ON_PLAIN[name] for name in ("star", "posterior", "rlp", "soft", "latent")
}
BEFORE = {"full": "full", "reinforce_weight_0": "without REINFORCE"}  # rows of studies/chatter.py
MANY = (1, 2, 4, 8, 16)


@torch.no_grad()
def several_thoughts(model, rows, tokenizer):
    """Of 1, 2, .. 16 thoughts before an answer, sampled at temperature 1: the NLL of the answer by their mean
    probability, the mean of the NLLs by each alone, and how often the digit of highest mean probability is right."""
    model = model.with_settings(n_thoughts=max(MANY), n_true=1, thought_temperature=1.0)
    shape = len(rows), max(MANY), 1, model.config.thought_len
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    thoughts = model.think(
        rows, positions=torch.full((len(rows), 1), rows.shape[1] - 2), noise=noise
    )
    h_mixed, true = (
        model.talk(thoughts.h_base, thoughts.h_thought)[0][:, :, 0, 0],
        rows[:, -1:],
    )  # (rows, N, C)
    log_p = token_log_prob(model.model.output, h_mixed, true.expand(h_mixed.shape[:-1]))
    digits = torch.tensor(tokenizer.encode("0123456789"))
    p_digit = model.model.logits(h_mixed).softmax(-1)[..., digits]
    found = {}
    for n in MANY:
        said = digits[p_digit[:, :n].mean(1).argmax(-1)]
        found[n] = {
            "nll_of_mean": -float(
                (log_p[:, :n].logsumexp(1) - torch.tensor(float(n)).log()).mean()
            ),
            "mean_of_nlls": -float(log_p[:, :n].mean()),
            "accuracy": float((said == true[:, 0]).float().mean()),
        }
    return found


def family(config, out):
    """Rows of the table in docs/family.md; several thoughts read together."""
    train_miniatures(config, out, {**ON_PLAIN, "pause": ["--thought_len=0"]})
    title = f"mean and spread over seeds {config.seeds}"
    rows = measure_rows(
        config, held_out(config), {name: (out / name, {}) for name in ("base", "pause", *ON_PLAIN)}
    )
    print_rows(f"the plain text, greedy thoughts; {title}; NLL in nats", rows, SCORES)
    chatter = train_chatter(
        config, out, {**{name: ROWS[name] for name in BEFORE.values()}, **ON_CHATTER}
    )
    names = {**{name: name for name in ON_CHATTER}, **BEFORE}
    folders = {
        name: chatter[names[name], config.all_seeds()[0]][0].parent
        for name in (*BEFORE, *ON_CHATTER)
    }
    sampled = {"name": "scores_sampled", "temperature": 1.0}
    text = held_out(config, CHATTER)
    noisy = measure_rows(
        config, text, {name: (folder, sampled) for name, folder in folders.items()}
    )
    print_rows(
        f"idle chatter, thoughts sampled at temperature 1; {title}; NLL in nats", noisy, SCORES
    )

    together = {}
    for name, data, folder in (
        ("full", PLAIN, out / "full"),
        ("pause", PLAIN, out / "pause"),
        ("chatter", CHATTER, folders["reinforce_weight_0"]),
    ):
        tokenizer, lines, _ = held_out_questions(data)
        of_seeds = []
        for seed in tqdm(
            config.all_seeds(), desc=f"several thoughts, {name}", unit="seed", disable=None
        ):
            run = folder / str(seed)
            make = partial(lambda run: several_thoughts(load_run(run)[0], lines, tokenizer), run)
            of_seeds.append(
                {int(n): x for n, x in remembered(run, "several_thoughts", make).items()}
            )
        together[name] = over_seeds(of_seeds)
        table = {f"{n} thoughts": together[name][n] for n in MANY}
        print_rows(
            f"{name}: several thoughts together; {title}",
            table,
            ("nll_of_mean", "mean_of_nlls", "accuracy"),
        )
    keep_results(out, "family", {**rows, "on_chatter": noisy, "several_thoughts": together})
    both = {**rows, **{f"chatter: {name}": row for name, row in noisy.items()}}
    draw_bars(
        both, "answer_accuracy", "share of answers that are right", out / "family.png", "The family"
    )


if __name__ == "__main__":
    run_studies(__doc__, family)

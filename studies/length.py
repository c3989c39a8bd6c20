"""
A model that learned to think at any length can tell how long to think. On sums of one to six digits
it thinks the longer, the longer the sum is, and needs fewer tokens than one that thinks at one
length or not at all.

    python -m studies.length
"""

from collections import namedtuple

import numpy as np
import torch
from torch.nn.functional import pad

from data.dataset import open_dataset
from eval import held_out_spans
from fast import token_log_prob
from lib.pictures import draw_lines
from lib.runs import load_run
from studies.runs import BASE, FROM_BASE, prepare, run_studies, train_rows
from studies.tables import over_seeds, print_rows, questions_in, share
from train import HERE, TrainConfig

DATA, LONGEST = "data/lengths", 6  # sums of 1 to 6 digits; thoughts of at most as many tokens
EACH = range(1, LONGEST + 1)
CHOICES = ["none", *map(str, range(LONGEST + 1))]  # lengths of a thought, in tokens
PRICES = [0, *np.geomspace(1e-3, 1, 31)]  # nats a token
AT = 11  # the table is of this one of the prices, 0.01
RANDOM = "random lengths, same places"

# Of each choice, the first of which is not to think: is the prediction right, what did the thought
# gain (nats), what did the gain head expect, (W, T, choices) each; tokens (choices,) that it costs.
Measured = namedtuple("Measured", "right gain expected tokens")


@torch.no_grad()
def measure_lengths(quiet, spans, among, lengths):
    """Measured, of spans (W, T+1) and greedy thoughts. among: the ids that an answer may be;
    lengths: at which the model reads its thoughts out."""
    quiet = quiet.with_settings(n_thoughts=1, n_true=1, thought_temperature=0.0)
    head, parts = quiet.model.output, []
    for ids in torch.from_numpy(spans).split(32):
        found = quiet.predict(ids)
        h_base, h_mixed = found.h_base[:, 0, :, :1], found.h_mixed[:, 0]  # (B, T, lengths, C)
        h = torch.cat((h_base, h_mixed), dim=2)
        true = ids[:, 1:, None].expand(h.shape[:-1])
        right = among[(h @ head.weight[among].T).argmax(-1)] == true
        log_p = token_log_prob(head, h, true)
        expected = quiet.gain_head(h_base[:, :, 0]).view(h_mixed.shape[:-1])
        parts.append((right, log_p - log_p[..., :1], pad(expected, (1, 0))))
    arrays = (torch.cat(x).numpy() for x in zip(*parts, strict=True))
    return Measured(*arrays, np.array([0, *(m + 2 for m in lengths)]))


def choose(measured, gain, price, shuffle=False):
    """The choice (W, T) that gains most beyond its price in nats a token. shuffle: the same places
    think, but their lengths change places at random."""
    choice = (gain - price * measured.tokens).argmax(-1)
    if shuffle:
        choice[choice > 0] = np.random.default_rng(0).permutation(choice[choice > 0])
    return choice


def judge(measured, choice, answers):
    """Thought tokens a position, start and end included; the share of answers that are right."""
    right = np.take_along_axis(measured.right, choice[..., None], -1)[..., 0]
    tokens = float(measured.tokens[choice].mean())
    return {"tokens": tokens, "accuracy": float(right[answers].mean())}


def measure_seed(folders, seed, dataset, texts):
    """All numbers of the models of one seed."""
    spans, answers = held_out_spans(dataset, 64, texts)
    among = torch.tensor(dataset.meta["answers"]["among"])
    quiet, tokenizer, *_ = load_run(folders["any_length"] / str(seed))
    any_length = measure_lengths(quiet, spans, among, range(LONGEST + 1))
    # {name: (Measured, the gains by which a length is chosen)}
    ways = {name: (any_length, any_length.expected) for name in ("any length", RANDOM)}
    ways["oracle"] = any_length, any_length.gain
    for m in EACH:
        quiet = load_run(folders[f"length_{m}"] / str(seed))[0]
        single = measure_lengths(quiet, spans, among, [m])
        ways[f"{m} or none"] = single, single.expected
    points = {}
    for name, way in ways.items():
        choices = [choose(*way, price, shuffle=name == RANDOM) for price in PRICES]
        points[name] = [judge(way[0], choice, answers) for choice in choices]
    choice, by_digits = choose(*ways["any length"], PRICES[AT]), {n: [] for n in EACH}
    for w, t, question in questions_in(spans, answers, tokenizer):
        by_digits[len(question)].append(choice[w, t])
    shares = {}
    for n, chosen in by_digits.items():
        shares[f"{n} digits"] = {x: share(c == k for c in chosen) for k, x in enumerate(CHOICES)}
    return {"lengths_by_digits": shares, "points": points}


def length(config, out):
    """How long to think: one model that learned all lengths beside six that learned one each."""
    text = ["--chatter=0", "--no-mark", "--explicit=0.5", "--double=0.3", "--min_digits=1"]
    prepare(DATA, out, *text, f"--max_digits={LONGEST}")
    folder, window = out / "lengths", f"--config={HERE / 'config' / 'arithmetic_long_base.toml'}"
    preset = [*BASE, window, f"--data={DATA}", "--max_steps=3500"]
    base = train_rows(config, folder, {"base": []}, preset)["base"]
    preset = [*FROM_BASE, f"--init_from={base}/{{seed}}", f"--data={DATA}"]
    preset += ["--think_at=aloud", "--n_thoughts=2", "--gain_head"]
    one = ["--lr=3e-4", "--mixing_head_lr=7"]
    rows = {f"length_{m}": [f"--thought_len={m}", *one] for m in EACH}
    steps = f"--max_steps={LONGEST * TrainConfig.max_steps}"  # as many as those together
    rows["any_length"] = [f"--thought_len={LONGEST}", "--thought_kind=any_length", steps]
    folders, dataset = train_rows(config, folder, rows, preset), open_dataset(DATA, "val")
    seeds = config.all_seeds()
    found = over_seeds([measure_seed(folders, seed, dataset, config.texts) for seed in seeds])
    table = {name: x[AT] for name, x in found["points"].items()}
    print_rows("thought tokens a position at 0.01 nats a token", table)
    print_rows("share of answers by length of thought", found["lengths_by_digits"])
    lines = {}
    for name, points in found["points"].items():
        lines[name] = {x["tokens"]["mean"]: x["accuracy"] for x in points}
    labels = "thought tokens a position", "answers that are right"
    draw_lines(lines, labels, out / "length.png", "How long to think")
    return {"table": table, **found}


if __name__ == "__main__":
    run_studies(__doc__, length)

"""
Can a model that learned to think at any length tell how long to think? On sums of one to six digits
it would think the longer, the longer the sum is, and need fewer tokens than if it thought at one
length or not at all. So far it needs as many (docs/results.md).

    python -m studies.length
"""

from functools import partial

import numpy as np
import torch
from torch.nn.functional import pad

from data.dataset import open_dataset
from eval import held_out_spans
from fast import token_log_prob
from lib.pictures import draw_lines, print_rows
from lib.runs import load_run
from studies.runs import BASE, FROM_BASE, prepare, run_studies, train_rows
from studies.tables import over_seeds, questions_in, share
from train import HERE, TrainConfig

DATA, LONGEST = "data/lengths", 6  # sums of 1 to 6 digits; thoughts of at most as many tokens
EACH = range(1, LONGEST + 1)
CHOICES = ["none", *map(str, range(LONGEST + 1))]  # lengths of a thought, in tokens
PRICES = [0, *np.geomspace(1e-3, 1, 31), 1e9]  # nats a token; at the last nobody thinks
AT = 11  # the table is of this one of the prices, 0.01


@torch.no_grad()
def measure_lengths(quiet, spans, among):
    """Of spans (W, T+1) and each choice, which are no thought and greedy ones of 0, 1, .. tokens:
    is the prediction right, what did the thought gain (nats), what did the gain head expect, arrays
    (W, T, choices); and the longest thoughts (W, T, m). among: the ids that an answer may be."""
    quiet = quiet.with_settings(n_thoughts=1, n_true=1, thought_temperature=0.0)
    head, parts = quiet.model.output, []
    for ids in torch.from_numpy(spans).split(32):
        found = quiet.predict(ids)
        h_base = found.h_base[:, 0, :, :1]
        h = torch.cat((h_base, found.h_mixed[:, 0]), dim=2)  # (B, T, choices, C)
        true = ids[:, 1:, None].expand(h.shape[:-1])
        right = among[(h @ head.weight[among].T).argmax(-1)] == true
        log_p = token_log_prob(head, h, true)
        expected = pad(quiet.gain_head(h_base[:, :, 0]), (1, 0))
        parts.append((right, log_p - log_p[..., :1], expected, found.thoughts[:, 0]))
    return [torch.cat(x).numpy() for x in zip(*parts, strict=True)]


def costs(choices):
    """The tokens of each choice: none, or those of a thought, start and end included."""
    return np.array([0, *range(2, choices + 1)])


def choose(gain, price):
    """The choice (W, T) whose gain (W, T, choices) most exceeds its price in nats a token."""
    return (gain - price * costs(gain.shape[-1])).argmax(-1)


def judge(right, choice, answers):
    """Thought tokens a position, start and end included; the share of answers that are right."""
    tokens = float(costs(right.shape[-1])[choice].mean())
    right = np.take_along_axis(right, choice[..., None], -1)[..., 0]
    return {"tokens": tokens, "accuracy": float(right[answers].mean())}


def ways_to_choose(gain, expected, thoughts, digits, dash):
    """Functions of a price that choose for each position (W, T), by name. digits (W, T): of the sum
    that ends there; 0: none does. dash: the id that ends a worked sum."""
    ways = {"any length": partial(choose, expected), "oracle": partial(choose, gain)}
    for m in EACH:
        others = np.isin(range(len(CHOICES)), (0, m + 1), invert=True)
        ways[f"{m} or none"] = partial(choose, np.where(others, -np.inf, expected))
    # the gain head says whether to think, and the thought itself where it ends
    own = np.pad(thoughts == dash, ((0, 0), (0, 0), (0, 1)), constant_values=True).argmax(-1)
    ways["own end"] = lambda price: np.where(choose(expected, price) > 0, own + 1, 0)
    told = np.zeros_like(gain)  # the best a gain head could say that knows the number of digits
    for n in set(digits[digits > 0].tolist()):
        told[digits == n] = gain[digits == n].mean(0)
    return ways | {"told the digits": partial(choose, told)}


def measure_seed(run, dataset, texts):
    """All numbers of the model of one seed."""
    quiet, tokenizer, *_ = load_run(run)
    spans, answers = held_out_spans(dataset, 64, texts)
    among = torch.tensor(dataset.meta["answers"]["among"])
    right, gain, expected, thoughts = measure_lengths(quiet, spans, among)
    dash, equals = tokenizer.encode("—=")
    digits = np.zeros(answers.shape, int)
    for w, t, question in questions_in(spans, spans[:, :-1] == equals, tokenizer):
        digits[w, t] = len(question)
    ways = ways_to_choose(gain, expected, thoughts, digits, dash)
    choices = {name: np.array([way(price) for price in PRICES]) for name, way in ways.items()}
    points = points_of(right, choices, answers)
    choice, lengths = choices["any length"][AT], {n: [] for n in EACH}
    for w, t in np.argwhere(answers):
        lengths[digits[w, t]].append(choice[w, t])
    shares = {}
    for n, chosen in lengths.items():
        shares[f"{n} digits"] = {x: share(c == k for c in chosen) for k, x in enumerate(CHOICES)}
    diagonal = [shares[f"{n} digits"][str(n)] for n in EACH]
    halves = []
    for part in np.array_split(np.arange(len(spans)), 2):
        of_part = {name: x[:, part] for name, x in choices.items()}
        halves.append(points_of(right[part], of_part, answers[part]))
    kept = {way: beside_one_length(*halves, way) for way in ways if "none" not in way}
    kept["any length"]["as_many_tokens_as_digits"] = float(np.mean(diagonal))
    return {"lengths_by_digits": shares, "points": points, "kept": kept}


def points_of(right, choices, answers):
    """What `judge` says at each of PRICES, of each way to choose a length {name: choices}."""
    return {name: [judge(right, x, answers) for x in row] for name, row in choices.items()}


def beside_one_length(chosen_on, judged_on, way):
    """A way to choose a length, beside the best single length and its price: the share of its gain
    in right answers and of its tokens. The price of `way` is the highest that keeps 0.98 of this
    gain. All prices are chosen on one half of the text, and judged on the other."""
    never = chosen_on["oracle"][-1]["accuracy"]
    single = [(f"{m} or none", x) for m in EACH for x in range(len(PRICES))]
    name, at = max(single, key=lambda pair: (chosen_on[pair[0]][pair[1]]["accuracy"], pair[1]))
    wanted = never + 0.98 * (chosen_on[name][at]["accuracy"] - never)
    enough = [x for x, point in enumerate(chosen_on[way]) if point["accuracy"] >= wanted]
    best, never = judged_on[name][at], judged_on["oracle"][-1]["accuracy"]
    if not enough or best["accuracy"] <= never:  # nothing that could be kept
        return {"gain": None, "tokens": None}
    ours = judged_on[way][enough[-1]]
    gain = (ours["accuracy"] - never) / (best["accuracy"] - never)
    return {"gain": gain, "tokens": ours["tokens"] / best["tokens"]}


def length(config, out):
    """How long to think, by a model that learned all lengths."""
    prepare(DATA, chatter=0.0, mark=False, double=0.3, min_digits=1, max_digits=LONGEST)
    window = f"--config={HERE / 'config' / 'arithmetic_long_base.toml'}"
    preset = [*BASE, window, f"--data={DATA}", "--max_steps=3500"]
    base = train_rows(config, out / "lengths", {"base": []}, preset)["base"]
    preset = [*FROM_BASE, f"--init_from={base}/{{seed}}", f"--data={DATA}"]
    row = ["--thought_kind=any_length", f"--thought_len={LONGEST}", "--gain_head", "--n_thoughts=2"]
    row += ["--think_at=aloud", f"--max_steps={LONGEST * TrainConfig.max_steps}"]
    folder = train_rows(config, out / "lengths", {"any_length": row}, preset)["any_length"]
    dataset, seeds = open_dataset(DATA, "val"), config.all_seeds()
    found = over_seeds([measure_seed(folder / str(x), dataset, config.texts) for x in seeds])
    table = {name: x[AT] for name, x in found["points"].items()}
    print_rows("beside the best single length: share of its gain, and of its tokens", found["kept"])
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

"""
A model that learned to think at any length can tell how long to think. On sums of one to six digits it thinks the
longer, the longer the sum is, and needs fewer tokens than one that thinks at one length or not at all.

    python -m studies.length
"""

from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from lean.log_prob import token_log_prob
from tqdm import tqdm

from data.dataset import open_dataset
from eval import held_out_spans
from lib.pictures import mean_and_spread, picture
from lib.runs import load_run
from lib.tokenizer import from_json
from studies.runs import HERE, fewer_steps, in_parallel, max_steps, prepare, run_studies, train_rows
from studies.tables import keep_results, over_seeds, print_rows, remembered

DATA, LONGEST = "data/lengths", 6  # sums of 1 to 6 digits; thoughts of at most as many tokens
EACH = range(1, LONGEST + 1)
KEPT = 0.98  # share of the gain in answers that a way to think must keep
PRICES = np.concatenate(([0], np.geomspace(1e-3, 0.5, 200)))  # nats a token


@torch.no_grad()
def measure_lengths(model, spans, among, temperature=0.0, batch_size=32):
    """Predictions for each token of spans (W, T+1), without a thought (right_base (W, T), nll_base) and after thoughts
    of 0, 1, .. m tokens: right, gain in nats, expected (by the gain head), (W, T, m+1) each; of a model that reads
    thoughts out at their end alone: (W, T, 1). thoughts (W, T, m): t_1 .. t_m; states (W, T, m, C): about to say them.
    A temperature of 0: greedy thoughts."""
    model, parts = model.with_settings(n_thoughts=1, n_true=1, thought_temperature=temperature), []
    head, among, chance = (
        model.model.output,
        torch.as_tensor(among),
        torch.Generator().manual_seed(0),
    )
    shape = 1, spans.shape[1] - 1, model.config.thought_len
    for tokens in tqdm(
        torch.from_numpy(spans).split(batch_size), desc="measuring", leave=False, disable=None
    ):
        thought = model.think(tokens, noise=torch.rand(len(tokens), *shape, generator=chance))
        h_base, h = (
            thought.h_base[:, 0],
            model.talk(thought.h_base, thought.h_thought)[0][:, 0],
        )  # (B, T, 1 or m+1, C)
        true = tokens[:, 1:, None].expand(h.shape[:-1])
        log_p_base = token_log_prob(head, h_base, true[..., :1])
        right_base, right = (
            among[(x @ head.weight[among].T).argmax(-1)] == tokens[:, 1:, None] for x in (h_base, h)
        )
        part = {"right_base": right_base[..., 0], "nll_base": -log_p_base[..., 0], "right": right}
        part |= {
            "gain": token_log_prob(head, h, true) - log_p_base,
            "states": thought.h_policy[:, 0],
        }
        part["thoughts"] = thought.tokens[:, 0]
        part["expected"] = model.gain_head(h_base[:, :, 0]).reshape(*right.shape)
        parts.append({name: x.numpy() for name, x in part.items()})
    return SimpleNamespace(
        **{name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    )


def digits(spans, answers, tokenizer):
    """How many digits the sum has whose answer is predicted, (W, T); 0 where none is."""
    found = np.zeros(answers.shape, int)
    for w, t in np.argwhere(answers):
        line = tokenizer.decode(spans[w, : t + 1].tolist()).split("\n")[-1]
        found[w, t] = len(line) - 1  # and "="
    return found


def at(found, lengths):
    """Is what is predicted right (W, T), if thoughts have these lengths (W, T), -1: none."""
    after = np.take_along_axis(found.right, lengths.clip(0)[..., None], -1)[..., 0]
    return np.where(lengths < 0, found.right_base, after)


def best(gain, price, lengths):
    """The length (W, T) of `lengths` whose gain (W, T, lengths) most exceeds its price, or -1; in tokens."""
    net = gain - price * (np.asarray(lengths) + 2)
    return np.where(net.max(-1) > 0, np.asarray(lengths)[net.argmax(-1)], -1)


def fit_online(found):
    """The online stop: a linear map of the hidden state about to say t_{s+1} to the gains of all lengths, one map for
    each s, by least squares: (m, C + 1, m + 1)."""
    maps = []
    for s in range(found.states.shape[2]):
        x = found.states[:, :, s].reshape(-1, found.states.shape[-1])
        x = np.concatenate((x, np.ones_like(x[:, :1])), axis=1).astype(np.float64)
        maps.append(
            np.linalg.solve(
                x.T @ x + 1e-3 * np.eye(x.shape[1]), x.T @ found.gain.reshape(len(x), -1)
            )
        )
    return np.stack(maps)


def expected_online(found, maps):
    """What they expect at each token of each thought: (W, T, m, m + 1)."""
    return np.einsum("wtsc,scg->wtsg", found.states, maps[:, :-1]) + maps[:, -1]


def stop_online(found, online, price):
    """Lengths (W, T) if a thought begins where the gain head says so, and goes on as long as some longer one is
    expected, by the hidden state at each of its tokens, to gain more beyond its price than to stop here."""
    m = online.shape[2]
    lengths = np.where(best(found.expected, price, range(m + 1)) < 0, -1, m)
    net = online - price * np.arange(m + 1)
    for s in reversed(range(m)):
        lengths = np.where(
            (lengths >= 0) & (net[:, :, s, s] >= net[:, :, s, s + 1 :].max(-1)), s, lengths
        )
    return lengths


def shuffled(lengths, seed=0):
    """The same places think, but their lengths change places at random."""
    mixed, rng = lengths.copy(), np.random.default_rng(seed)
    mixed[lengths >= 0] = rng.permutation(lengths[lengths >= 0])
    return mixed


def halves(spans):
    """Those of the spans that prices are chosen on, and those that are judged: slices."""
    half = len(spans) // 2
    return slice(half), slice(half, None)


def curve(find, answers, parts):
    """Points of a way to think, a function of the price that gives (what is measured, lengths): [[mean thought tokens a
    position, start and end included, accuracy of answers]] by PRICES, on each of some parts of the spans, slices."""
    points = [[] for _ in parts]
    for price in PRICES:
        measured, lengths = find(price)
        tokens, right = np.where(lengths < 0, 0, lengths + 2), at(measured, lengths)
        for of_part, part in zip(points, parts, strict=True):
            of_part.append([float(tokens[part].mean()), float(right[part][answers[part]].mean())])
    return points


def ways_to_think(any_length, singles, online):
    """Ways of choosing lengths {name: function of the price}, each of a model that was measured. "m or none" is that of
    the models trained at one length."""
    m = any_length.gain.shape[-1] - 1

    def chosen(price):
        return best(any_length.expected, price, range(m + 1))

    ways = {
        "any length": lambda price: (any_length, chosen(price)),
        "any length, online stop": lambda price: (
            any_length,
            stop_online(any_length, online, price),
        ),
        "random lengths, same places": lambda price: (any_length, shuffled(chosen(price))),
        "oracle": lambda price: (any_length, best(any_length.gain, price, range(m + 1))),
    }
    for k, single in singles.items():
        one = SimpleNamespace(**{**vars(single), "right": single.right.repeat(m + 1, -1)})
        ways[f"{k} or none"] = lambda price, one=one, k=k: (one, best(one.expected, price, [k]))
    for k in range(m + 1):
        expected = any_length.expected[..., k : k + 1]
        ways[f"any length, {k} or none"] = lambda price, x=expected, k=k: (
            any_length,
            best(x, price, [k]),
        )
    return ways


def cheapest(points, judged, enough):
    """Of the points with enough accuracy, that with the fewest tokens: judged on the other half; and its number."""
    good = [i for i, (_, accuracy) in enumerate(points) if accuracy >= enough]
    i = (
        min(good, key=lambda i: points[i][0])
        if good
        else max(range(len(points)), key=lambda i: points[i][1])
    )
    return *judged[i], i


def compare(ways, found, answers):
    """Each way to think at the cheapest price that keeps KEPT of the most that "m or none" gains on the first half of
    the spans; judged on the second half: {way: tokens a position, accuracy, price}. All points of the second half. And
    the best "m or none", the cheapest of those that reach as much."""
    parts, points, judged = halves(answers), {}, {}
    for name, way in ways.items():
        points[name], judged[name] = curve(way, answers, parts)
    nowhere = float(found.right_base[parts[0]][answers[parts[0]]].mean())
    or_none = [name for name in ways if name.endswith("or none")]
    most = max(accuracy for name in or_none for _, accuracy in points[name])
    enough, table, chosen = nowhere + KEPT * (most - nowhere), {}, {}
    for name in ways:
        tokens, accuracy, chosen[name] = cheapest(points[name], judged[name], enough)
        table[name] = {"tokens": tokens, "accuracy": accuracy, "price": float(PRICES[chosen[name]])}
    reach = [name for name in or_none if points[name][chosen[name]][1] >= enough] or or_none
    return table, judged, min(reach, key=lambda name: points[name][chosen[name]][0])


def text_of(data, texts):
    """Of a corpus: held-out spans (W, T+1), where they have answers (W, T), spans of its training text that the online
    stop is fitted on, its tokenizer, and the tokens that an answer may be."""
    dataset = open_dataset(data, "val")
    seen = held_out_spans(open_dataset(data, "train"), 64, 2 * texts)[0]
    tokenizer, among = from_json(dataset.meta["tokenizer"], data), dataset.meta["answers"]["among"]
    return *held_out_spans(dataset, 64, texts), seen, tokenizer, among


def measured_seed(out, seed, texts):
    """All of this study's numbers of the models of one seed, kept beside its runs."""
    return remembered(
        out / "any_length" / str(seed),
        "lengths",
        partial(measure_seed, out, seed, texts),
        texts=texts,
    )


def measure_seed(out, seed, texts):
    """The same, measured: prices are chosen on one half of the spans, and judged on the other."""
    spans, answers, seen, tokenizer, among = text_of(DATA, texts)
    model = load_run(out / "any_length" / str(seed))[0]
    found, seen = (measure_lengths(model, x, among) for x in (spans, seen))
    singles = {}
    for k in EACH:
        singles[k] = measure_lengths(load_run(out / f"length_{k}" / str(seed))[0], spans, among)
    ways, (_, second) = (
        ways_to_think(found, singles, expected_online(found, fit_online(seen))),
        halves(spans),
    )
    table, judged, single = compare(ways, found, answers)
    without = float(found.right_base[second][answers[second]].mean())
    gains = {name: row["accuracy"] - without for name, row in table.items()}
    count, heat = digits(spans, answers, tokenizer), {}
    for name in ("any length", "any length, online stop"):
        _, lengths = ways[name](table[name]["price"])
        heat[name] = [
            [float((lengths[count == n] == k).mean()) for k in range(-1, LONGEST + 1)] for n in EACH
        ]
    _, lengths = ways["any length"](table["any length"]["price"])
    fixed = {str(k): float(found.right[..., k][answers].mean()) for k in range(LONGEST + 1)}
    return {
        "table": table,
        "best_single": single,
        "gain_kept": ratio(gains["any length"], gains[single]),
        "tokens_ratio": ratio(table["any length"]["tokens"], table[single]["tokens"]),
        "online_gain_kept": ratio(gains["any length, online stop"], gains[single]),
        "online_tokens_ratio": ratio(
            table["any length, online stop"]["tokens"], table[single]["tokens"]
        ),
        "diagonal_share": diagonal_share(heat["any length"]),
        "online_diagonal_share": diagonal_share(heat["any length, online stop"]),
        "lengths_by_digits": heat,
        "one_model": fixed,
        "one_each": {str(k): float(x.right[..., 0][answers].mean()) for k, x in singles.items()},
        "by_digits": [
            [float(found.right[..., k][count == n].mean()) for k in range(LONGEST + 1)]
            for n in EACH
        ],
        "base_by_digits": [float(found.right_base[count == n].mean()) for n in EACH],
        "points": judged,
        "other_nll": {
            "without": float(found.nll_base[~answers].mean()),
            "chosen": float((found.nll_base - gain_at(found, lengths))[~answers].mean()),
        },
    }


def diagonal_share(shares):
    """Of answers, the share whose thought has as many tokens as the sum has digits, or one more or less. Sums of
    one digit need none: there it is the share without a thought."""
    return float(
        np.mean([shares[0][0], *(sum(row[n : n + 3]) for n, row in enumerate(shares[1:], 2))])
    )


def ratio(a, b):
    """a / b; None of what is 0 (in trials of a few steps)."""
    return a / b if b else None


def gain_at(found, lengths):
    """Nats that are gained where thoughts have these lengths, -1: none."""
    return np.where(
        lengths < 0, 0, np.take_along_axis(found.gain, lengths.clip(0)[..., None], -1)[..., 0]
    )


def length(config, out):
    """How long to think: chosen lengths by digits of the sum; accuracy by tokens thought; one model beside six."""
    text = ["--chatter=0", "--no-mark", "--explicit=0.5", "--double=0.3"]
    prepare(
        DATA, "data/arithmetic/prepare.py", out, *text, "--min_digits=1", f"--max_digits={LONGEST}"
    )
    preset = [
        f"--config={HERE / 'config' / 'arithmetic_base.toml'}",
        "--eval_every=0",
        "--sliding_window=32",
    ]
    preset += [f"--data={DATA}", *(fewer_steps(config) or ["--max_steps=3500"])]
    folder = out / "lengths"
    train_rows(config, folder, {"base": []}, preset)
    preset = [
        f"--init_from={folder / 'base'}/{{seed}}",
        "--base_preset=",
        "--eval_every=0",
        f"--data={DATA}",
    ]
    preset += ["--think_at=aloud", "--n_thoughts=2"]
    rows = {
        "any_length": [
            "--thought_kind=any_length",
            f"--thought_len={LONGEST}",
            max_steps(config, LONGEST),
        ]
    }
    rows |= {
        f"length_{k}": [f"--thought_len={k}", "--lr=3e-4", "--mixing_head_lr=7", max_steps(config)]
        for k in EACH
    }
    train_rows(config, folder, rows, preset)

    calls = {seed: (measured_seed, folder, seed, config.texts) for seed in config.all_seeds()}
    of_seeds = list(in_parallel(calls, config.jobs, "measuring").values())
    single = [x.pop("best_single") for x in of_seeds]
    found = over_seeds(of_seeds)
    title = f"mean and spread over seeds {config.seeds}"
    names = ["none", *map(str, range(LONGEST + 1))]
    for name, heat in found["lengths_by_digits"].items():
        rows = {
            f"{n} digits": dict(zip(names, row, strict=True))
            for n, row in zip(EACH, heat, strict=True)
        }
        print_rows(
            f"{name}: share of answers by the length of the thought before them; {title}",
            rows,
            names,
        )
    about = f"accuracy and thought tokens a position, at prices that kept {KEPT:.0%} of the gain on the other half"
    print_rows(f"{about}; {title}", found["table"], ("tokens", "accuracy", "price"))
    print(f"the best of those that think at one length or not at all, by seed: {', '.join(single)}")
    keys = "gain_kept", "tokens_ratio", "diagonal_share"
    keys += tuple(f"online_{key}" for key in keys)
    print_rows(
        f"any length beside the best of those; {title}",
        {"": {key: found[key] for key in keys}},
        keys,
    )
    lengths = [str(k) for k in range(LONGEST + 1)]
    rows = {"one model": found["one_model"], "one model each": found["one_each"]}
    print_rows(f"answers that are right after thoughts of a length; {title}", rows, lengths)
    means = {key: found[key] and found[key]["mean"] for key in keys}
    keep_results(
        out,
        "length",
        {**found, "over_seeds": {key: found[key] for key in keys}, **means, "best": single},
    )
    draw_length(found, names, out / "length.png")


def draw_tokens(axes, ways):
    """Accuracy against tokens of ways to think, over prices: {name: [[mean and spread of tokens, of accuracy]]}."""
    for name, points in ways.items():
        x, y = zip(*sorted((p[0]["mean"], p[1]["mean"]) for p in points), strict=True)
        bold = name in ("any length", "any length, online stop", "oracle")
        axes.plot(x, y, label=name, lw=2 if bold else 1, ls="-" if bold else "--", marker=".", ms=3)
    axes.set_xscale("symlog", linthresh=0.1)
    axes.set(xlabel="thought tokens a position", ylabel="answers that are right")
    axes.xaxis.set_major_formatter("{x:g}")


def draw_length(found, names, path):
    """Chosen lengths, accuracy against tokens, and one model beside six."""
    title = (
        "How long to think: chosen lengths; what they save; one model at all lengths, or one each"
    )
    with picture(path, 19, 4.2, 4, title) as (*heats, tokens, each):
        for axes, (name, rows) in zip(heats, found["lengths_by_digits"].items(), strict=True):
            shares = np.array([[x["mean"] for x in row] for row in rows])
            axes.imshow(shares, cmap="Greens", vmin=0, vmax=1, aspect="auto")
            for (y, x), share in np.ndenumerate(shares):
                axes.text(
                    x,
                    y,
                    f"{share:.2f}",
                    ha="center",
                    va="center",
                    size=7,
                    color="wk"[int(share < 0.6)],
                )
            axes.set_xticks(range(len(names)), names)
            axes.set_yticks(range(len(shares)), EACH)
            axes.set(
                title=name,
                xlabel="tokens of the thought before an answer",
                ylabel="digits of the sum",
            )
        own = [
            name
            for name in found["points"]
            if name.startswith("any length, ") and "online" not in name
        ]
        draw_tokens(
            tokens, {name: points for name, points in found["points"].items() if name not in own}
        )
        for name, label in (("one_model", "one model"), ("one_each", "one model each")):
            means, spreads = zip(*mean_and_spread(found[name].values()), strict=True)
            at_lengths = [int(k) for k in found[name]]
            each.errorbar(at_lengths, means, yerr=spreads, marker="o", ms=3, capsize=3, label=label)
        each.set(xlabel="tokens of every thought", ylabel="answers that are right", ylim=(0, 1.03))


if __name__ == "__main__":
    run_studies(__doc__, length)

"""
A real model, a real text: SmolLM2-135M learns to think on the solutions of GSM8K, half of whose
calculations are left out (data/gsm8k_steps). Does it help where a calculation is left out?

    python data/smollm2/prepare.py && python data/gsm8k_steps/prepare.py
    python -m studies.gsm8k_steps

Counted are the NLL of the number there, and whether it is written exactly: each token the likeliest
of those that a number can hold, and no digit behind it. The model thinks once, before the number,
if it would itself begin a calculation there. At the first token of a number "<<" is no choice.
"""

from collections import namedtuple
from functools import partial
from itertools import product

import numpy as np
import torch
from torch.nn.functional import pad
from tqdm import tqdm

from beyond.adaptive import says_start
from beyond.kinds import ThinkingConfig, thinking_model
from data.dataset import open_dataset
from lib.parallel import pick_device
from lib.pictures import draw_bars
from lib.runs import load_run
from quiet_star import QuietSTaR
from studies.runs import run_studies, train_all, train_rows
from studies.tables import over_seeds, print_rows, remembered
from train import HERE

DATA = "data/gsm8k_steps"
COLUMNS = "nll", "exact", "gate", "thinks"
THINK_ABOVE = 0.1  # the model thinks where it would say "<<" with a higher probability
ROWS = {
    "quiet_star": [],
    "lm": ["--objective=lm", "--lr=5e-5", "--max_steps=50"],  # what suits it
    "pause": ["--thought_len=0"],
    "without_reinforce": ["--reinforce_weight=0"],
}


# A solution: its ids (L,), and for each of its numbers where it begins and how many tokens it has.
Text = namedtuple("Text", "ids first size")


def texts_of(count):
    """Those of so many solutions of the test set, from the first, that have calculations which are
    left out."""
    dataset, texts = open_dataset(DATA, "val"), []
    ends = np.flatnonzero(dataset.tokens == dataset.meta["document_end"])[:count] + 1
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        edges = np.flatnonzero(np.diff(np.pad(dataset.answers[start:end], 1).astype(np.int8)))
        first, last = torch.from_numpy(edges.reshape(-1, 2)).T
        ids = torch.from_numpy(dataset.tokens[start:end].astype(np.int64))
        texts.append(Text(ids, first, last - first))
    return [text for text in texts if len(text.first)]


@torch.no_grad()
def read_numbers(model, texts, among, mark, thoughts=None):
    """Predict every number of texts: nll (n,) in nats, exact (n,), gate (n,), thinks (n,) and
    thoughts (n, m). among: ids that a number can hold; mark: the id of "<<"; thoughts: of each
    text, those to read instead of thinking."""
    if not isinstance(model, QuietSTaR):  # a new gate is 0: it predicts as if it did not think
        model = thinking_model(model, ThinkingConfig(thought_len=0)).to(model.output.weight)
    a = 1 + max(int(text.size.max()) for text in texts)  # the number, and what stands behind it
    quiet = model.with_settings(n_thoughts=1, n_true=a, thought_temperature=0.0)
    head, found = quiet.model.output, []
    among = torch.as_tensor(among).to(head.weight.device)
    ahead = torch.arange(a).to(among)
    texts = zip(texts, thoughts or [None] * len(texts), strict=True)
    for text, given in tqdm(list(texts), "numbers", leave=False, disable=None):
        ids, first, size = (x.to(among) for x in (pad(text.ids, (0, a)), text.first, text.size))
        given = None if given is None else given[None, None].to(among)
        with torch.autocast(among.device.type, torch.bfloat16):  # as it was trained
            said = quiet.predict(ids[None], first[None] - 1, given)
            thinks = says_start(quiet, mark, THINK_ABOVE)(said.h_base[0, 0, :, 0]) >= 0
        h = said.h_mixed[0, 0].where(thinks[:, None, None], said.h_base[0, 0])  # (S, a, C)
        logits = head(h.to(head.weight.dtype))  # (S, a, V)
        logits[:, 0, mark] = -torch.inf
        target, inside = ids[first[:, None] + ahead], ahead < size[:, None]  # (S, a)
        log_p = logits.log_softmax(-1).gather(-1, target[..., None])[..., 0]
        right = (among[logits[..., among].argmax(-1)] == target) | ~inside
        behind = logits.argmax(-1).gather(1, size[:, None])[:, 0]
        new = {"nll": -log_p.where(inside, 0).sum(-1)}
        new["exact"] = right.all(-1) & ~torch.isin(behind, among)
        new |= {"gate": said.gate[0, 0, :, 0].float(), "thinks": thinks}
        new["thoughts"] = said.thoughts[0, 0]
        found.append({name: x.cpu().numpy() for name, x in new.items()})
    return {name: np.concatenate([x[name] for x in found]) for name in found[0]}


def measure_run(run, config):
    """{way of thinking: {column: a list by number of the text}} of a run."""
    model, tokenizer, *_ = load_run(run, pick_device("auto"))
    among, mark = open_dataset(DATA, "val").meta["answers"]["among"], tokenizer.encode("<<")[0]
    texts = texts_of(config.texts)
    job = texts, among, mark
    ways = {"": read_numbers(model, *job)}
    if run.parent.name == "quiet_star":
        moved = torch.from_numpy(ways[""]["thoughts"]).roll(1, 0)
        moved = moved.split([len(text.size) for text in texts])
        ways[", another position's"] = read_numbers(model, *job, moved)
        ways[", left out"] = read_numbers(model.model, *job)
    return {way: {c: x[c].astype(float).tolist() for c in COLUMNS} for way, x in ways.items()}


def compare(values, others, documents):
    """Mean of values - others (n,) of the same numbers, and its 95 % interval. Documents (n,) are
    independent of each other, numbers of one document are not."""
    difference = np.subtract(values, others)
    mean = float(difference.mean())
    sums = np.bincount(documents, difference - mean)
    error = float((sums**2).sum() ** 0.5 / len(difference))
    return {"mean": mean, "low": mean - 1.96 * error, "high": mean + 1.96 * error}


def gsm8k_steps(config, out):
    """Numbers whose calculations are left out, with thoughts and without; what thoughts say."""
    out = out / "gsm8k_steps"
    base, preset = out / "base" / "0", f"--config={HERE / 'config' / 'gsm8k_steps'}"
    trial = [f"--max_steps={config.steps}"] if config.steps else []
    train_all({base: [f"{preset}_base.toml", "--device=auto", *trial]}, 1)
    flags = [f"{preset}.toml", f"--init_from={base}", "--base_preset=", "--device=auto"]
    folders = train_rows(config, out, ROWS, flags)
    runs = [base, *(folders[row] / str(x) for x in config.all_seeds() for row in ROWS)]
    rows = {}  # {row: [{column: values}, by seed]}
    for run in tqdm(runs, "measuring", disable=None):
        make = partial(measure_run, run, config)
        for way, values in remembered(run, "numbers", make, texts=config.texts).items():
            rows.setdefault(run.parent.name + way, []).append(values)
    table = {}
    for row, seeds in rows.items():
        table[row] = over_seeds([{c: float(np.mean(x[c])) for c in COLUMNS} for x in seeds])
    print_rows("numbers and thoughts", table)
    sizes = [len(text.size) for text in texts_of(config.texts)]
    documents, minus = np.repeat(range(len(sizes)), sizes), {row: {} for row in rows}
    for row, c in product(rows, COLUMNS[:2]):
        pair = (np.mean([x[c] for x in rows[name]], axis=0) for name in ("quiet_star", row))
        minus[row][c] = x = compare(*pair, documents)
        print(f"quiet_star - {row}, {c}: {x['mean']:+.3f} [{x['low']:+.3f}, {x['high']:+.3f}]")
    label, title = "share of numbers written exactly", "numbers whose calculations are left out"
    draw_bars(table, "exact", label, out.with_suffix(".png"), title)
    return {"numbers": table, "quiet_star_minus": minus}


if __name__ == "__main__":
    run_studies(__doc__, gsm8k_steps)

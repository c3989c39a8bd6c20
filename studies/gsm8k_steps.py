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
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn.functional import pad
from tqdm import tqdm

from beyond.adaptive import says_start
from data.dataset import open_dataset
from lib.parallel import pick_device
from lib.pictures import draw_bars
from lib.runs import load_run
from quiet_star import QuietSTaR
from studies.runs import StudyConfig, max_steps, run_studies, train_all, train_rows
from studies.tables import over_seeds, print_rows, remembered
from train import HERE

DATA = "data/gsm8k_steps"
THINK_ABOVE = 0.1  # the model thinks where it would say "<<" with a higher probability
ROWS = {
    "quiet_star": [],
    "lm": ["--objective=lm", "--lr=5e-5", "--max_steps=50"],  # what suits it
    "pause": ["--thought_len=0"],
    "without_reinforce": ["--reinforce_weight=0"],
}


@dataclass
class StepsConfig(StudyConfig):
    out: str = "out/gsm8k_steps_study"  # folder of all runs, tables and pictures
    texts: int = 500  # solutions of the test set to measure on, from the first


# A solution: its ids (L,), and for each of its numbers where it begins and how many tokens it has.
Text = namedtuple("Text", "ids first size")


def texts_of(count):
    """Those of the first solutions of the test set that have calculations which are left out."""
    dataset, texts = open_dataset(DATA, "val"), []
    ends = np.flatnonzero(dataset.tokens == dataset.meta["document_end"])[:count] + 1
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        edges = np.flatnonzero(np.diff(np.pad(dataset.answers[start:end], 1).astype(np.int8)))
        first, last = torch.from_numpy(edges.reshape(-1, 2)).T
        ids = torch.from_numpy(dataset.tokens[start:end].astype(np.int64))
        texts.append(Text(ids, first, last - first))
    return [text for text in texts if len(text.first)]


@torch.no_grad()
def read_numbers(model, texts, among, mark, thoughts=None, **settings):
    """Predict every number of texts: nll (n,) in nats, exact (n,), and of a model that thinks gate
    (n,), thinks (n,) and thoughts (n, m), the first of each. among: ids that a number can hold;
    mark: the id of "<<"; thoughts: to read instead of thinking; settings: of the model."""
    thinking, device = isinstance(model, QuietSTaR), next(model.parameters()).device
    plain, generator = model.model if thinking else model, torch.Generator().manual_seed(0)
    a = 1 + max(int(text.size.max()) for text in texts)  # the number, and what stands behind it
    settings = {"n_thoughts": 1, "n_true": a, "thought_temperature": 0.0, **settings}
    quiet = model.with_settings(**settings) if thinking else None
    among, found, done = torch.as_tensor(among, device=device), [], 0
    for text in tqdm(texts, "numbers", leave=False, disable=None):
        ids, size = pad(text.ids, (0, a)).to(device), text.size.to(device)
        positions, new = (text.first - 1).to(device), {}  # (S,)
        ahead = positions[:, None] + torch.arange(1, a + 1, device=device)  # (S, a)
        with torch.autocast(device.type, torch.bfloat16):  # as it was trained
            if thinking:
                shape = 1, quiet.config.n_thoughts, len(size), quiet.config.thought_len
                noise, given = torch.rand(shape, generator=generator).to(device), None
                if thoughts is not None:
                    given = thoughts[None, None, done : done + len(size)].to(device)
                said = quiet.predict(ids[None], positions[None], given, noise)
                thinks = says_start(quiet, mark, THINK_ABOVE)(said.h_base[0, 0, :, 0]) >= 0
                h = said.h_mixed[0].where(thinks[:, None, None], said.h_base[0])  # (N, S, a, C)
                new = {"gate": said.gate[0, :, :, 0].float().mean(0), "thinks": thinks}
                new["thoughts"] = said.thoughts[0, 0]
            else:
                h = plain(ids[None])[:, ahead - 1]
        logits = plain.logits(h.to(plain.output.weight.dtype))
        logits[:, :, 0, mark] = -torch.inf
        p = logits.softmax(-1).mean(0)  # (S, a, V)
        target, inside = ids[ahead], torch.arange(a, device=device) < size[:, None]
        nll = -p.gather(-1, target[..., None])[..., 0].log()
        right = (among[p[..., among].argmax(-1)] == target) | ~inside
        behind = p.argmax(-1).gather(1, size[:, None])[:, 0]
        new["nll"] = nll.where(inside, 0).sum(-1)
        new["exact"] = right.all(-1) & ~torch.isin(behind, among)
        found.append({name: x.cpu().numpy() for name, x in new.items()})
        done += len(size)
    return {name: np.concatenate([x[name] for x in found]) for name in found[0]}


def measure_run(run, config):
    """{way of thinking: {column: a list by number of the text}} of a run."""
    model, tokenizer, *_ = load_run(run, pick_device("auto"))
    among, mark = open_dataset(DATA, "val").meta["answers"]["among"], tokenizer.encode("<<")[0]
    job = texts_of(config.texts), among, mark
    read = partial(read_numbers, model, *job)
    ways = {"": read()}
    if run.parent.name == "quiet_star":
        ways |= {
            ", another position's": read(torch.from_numpy(ways[""]["thoughts"]).roll(1, 0)),
            ", left out": read_numbers(model.model, *job),
            ", sampled": read(thought_temperature=1.0),
            ", 4 averaged": read(thought_temperature=1.0, n_thoughts=4),
        }
    columns = "nll", "exact", "gate", "thinks"
    return {
        way: {c: x[c].astype(float).tolist() for c in columns if c in x} for way, x in ways.items()
    }


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
    steps, device = [max_steps(config)] if config.steps else [], "--device=auto"
    base, preset = out / "base" / "0", f"--config={HERE / 'config' / 'gsm8k_steps'}"
    train_all({base: [f"{preset}_base.toml", device, *steps]}, 1)
    flags = [f"{preset}.toml", f"--init_from={base}", "--base_preset=", device]
    folders = train_rows(config, out, {row: [*x, *steps] for row, x in ROWS.items()}, flags)
    runs = [base, *(folders[row] / str(x) for x in config.all_seeds() for row in ROWS)]
    rows = {}  # {row: [{column: values}, by seed]}
    for run in tqdm(runs, "measuring", disable=None):
        make = partial(measure_run, run, config)
        for way, values in remembered(run, "numbers", make, texts=config.texts).items():
            rows.setdefault(run.parent.name + way, []).append(values)
    means = {row: [{c: float(np.mean(x[c])) for c in x} for x in rows[row]] for row in rows}
    table = {row: over_seeds(means[row]) for row in rows}
    print_rows("numbers and thoughts", table, ("nll", "exact", "gate", "thinks"))
    sizes = [len(text.size) for text in texts_of(config.texts)]
    documents, minus = np.repeat(range(len(sizes)), sizes), {}
    for row in rows:
        minus[row] = {}
        for c in ("nll", "exact"):
            pair = (np.mean([x[c] for x in rows[name]], axis=0) for name in ("quiet_star", row))
            minus[row][c] = compare(*pair, documents)
        for c, x in minus[row].items():
            print(f"quiet_star - {row}, {c}: {x['mean']:+.3f} [{x['low']:+.3f}, {x['high']:+.3f}]")
    label, title = "share of numbers written exactly", "numbers whose calculations are left out"
    draw_bars(table, "exact", label, out / "gsm8k_steps.png", title)
    return {"numbers": table, "quiet_star_minus": minus}


if __name__ == "__main__":
    run_studies(__doc__, gsm8k_steps, config_class=StepsConfig)

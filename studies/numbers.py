"""
A real model, real text: SmolLM2-135M learns to think where a calculation is left out, as half of
them are in GSM8K's solutions and in word problems (learned: MAWPS, ASDiv-A; measured: SVAMP).

    python data/smollm2/prepare.py
    python data/gsm8k_steps/prepare.py && python data/svamp/prepare.py
    python -m studies.numbers --texts=1319

Counted are the NLL of the number there, and whether it is written exactly: each token the likeliest
of those that a number can hold, and behind it none of these, or the text's own. The model thinks
once, before the number, if it would begin a calculation there. A number does not begin with "<<".

The use ratio is the share that hidden thoughts have of what the model could tell itself:
(exact after a thought - exact at once) / (exact after its own written calculation - exact at once).
"""

import math
import re
from collections import namedtuple
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from beyond.adaptive import says_start
from beyond.kinds import ThinkingConfig, thinking_model, with_gate
from beyond.positions import one_token
from beyond.star import Question, StarConfig, self_taught
from data.dataset import open_dataset
from lib.parallel import pick_device
from lib.pictures import draw_bars, print_rows
from lib.runs import load_run, start_thoughts
from quiet_star import QuietSTaR
from studies.runs import run_studies, train_all, train_rows
from studies.tables import over_seeds, remembered
from train import HERE

PRESET = f"--config={HERE / 'config' / 'numbers'}"
COLUMNS = "nll", "exact", "gate", "thinks", "right"
BATCH = 32  # texts that are measured at once
THINK_ABOVE = 0.1  # the model thinks where it would say "<<" with a higher probability
# heads: the mixing head learns beside a fixed model, see config/numbers.toml
FIRST = {"heads": [], "lm": ["--objective=lm", "--lr=5e-5"]}
PAUSE = {"pause": ["--thought_len=0"]}  # of one seed
# From there on the model of one seed learns, too: additions to its weights, by sampled thoughts.
TOGETHER = "--lora_rank=16 --lr=1e-4 --mixing_head_lr=1e-5 --max_steps=110 --batch_size=4".split()
TOGETHER += "--thought_temperature=0.5 --log_prob_temperature=0.5 --n_thoughts=8".split()
TOGETHER += "--thought_len=12 --n_true=3 --no-clamp_advantage --min_lr_share=0.3".split()
SECOND = {"reinforce": ["--reinforce_weight=10", *TOGETHER], "without_reinforce": TOGETHER}

# A solution: its ids (L,), and for each of its numbers where it begins and how many tokens it has.
Text = namedtuple("Text", "ids first size")


def texts_of(data, count):
    """Those of the first `count` test solutions with calculations left out, sorted by size."""
    dataset, texts = open_dataset(data, "val"), []
    for start, end in documents_of(dataset)[:count]:
        edges = np.flatnonzero(np.diff(np.pad(dataset.answers[start:end], 1)))
        first, last = torch.from_numpy(edges.reshape(-1, 2)).T
        ids = torch.from_numpy(dataset.tokens[start:end].astype(np.int64))
        texts.append(Text(ids, first, last - first))
    return sorted((x for x in texts if len(x.first)), key=lambda x: (len(x.first), len(x.ids)))


def documents_of(dataset):
    """Where each document of a dataset begins and ends: [(start, end)]."""
    ends = 1 + np.flatnonzero(dataset.tokens == dataset.meta["document_end"])
    return list(pairwise([0, *ends.tolist()]))


def batches(texts, size):
    """Batches of texts: ids (B, L), first and size (B, S), and which numbers there are (B, S).
    What a shorter text lacks is 0, or a number of one token at position 1."""
    for start in range(0, len(texts), size):
        part = texts[start : start + size]
        ids = pad_sequence([text.ids for text in part], batch_first=True)
        first = pad_sequence([text.first for text in part], batch_first=True, padding_value=1)
        sizes = pad_sequence([text.size for text in part], batch_first=True)
        yield ids, first, sizes.clamp(min=1), sizes > 0


@torch.no_grad()
def read_numbers(model, texts, among, mark, thoughts=None, n_thoughts=1):
    """Predict every number of texts: nll (n,) in nats, exact (n,), gate (n,), thinks (n,) and
    thoughts (n, N, m). among: ids that a number can hold; mark: the id of "<<"; thoughts: those to
    read instead of thinking. Of several thoughts, which are sampled, the probabilities are
    averaged; one is greedy."""
    if not isinstance(model, QuietSTaR):  # a new gate is 0: it predicts as if it did not think
        model = thinking_model(model, ThinkingConfig(thought_len=0)).to(model.output.weight)
    temperature = 0.0 if n_thoughts == 1 else 1.0
    quiet = model.with_settings(n_thoughts=n_thoughts, thought_temperature=temperature)
    head, found = quiet.model.output, []
    among = torch.as_tensor(among).to(head.weight.device)
    for part in tqdm([*batches(texts, BATCH)], "numbers", leave=False, disable=None):
        ids, first, size, there = (x.to(among.device) for x in part)
        a = 1 + int(size.max())  # the number, and what stands behind it
        quiet, ahead = quiet.with_settings(n_true=a), torch.arange(a).to(among)
        ids, given = pad(ids, (0, a)), None
        if thoughts is not None:
            given = ids.new_zeros(*first.shape, *thoughts.shape[1:])  # (B, S, N, m)
            given[there], thoughts = thoughts[: there.sum()].to(given), thoughts[there.sum() :]
            given = given.transpose(1, 2)
        with torch.autocast("cuda", torch.bfloat16, enabled=ids.is_cuda):  # as it was trained
            said = quiet.predict(ids, first - 1, given)
            thinks = says_start(quiet, mark, THINK_ABOVE)(said.h_base[:, 0, :, 0]) >= 0  # (B, S)
        h = said.h_mixed.where(thinks[:, None, :, None, None], said.h_base)  # (B, N, S, a, C)
        logits = head(h.transpose(1, 2)[there].to(head.weight.dtype))  # (n, N, a, V)
        logits[:, :, 0, mark] = -torch.inf
        log_p = logits.log_softmax(-1).logsumexp(1) - math.log(h.shape[1])  # (n, a, V)
        target = ids[there.nonzero()[:, :1], first[there][:, None] + ahead]  # (n, a)
        inside = ahead < size[there][:, None]  # (n, a)
        nll = -log_p.gather(-1, target[..., None])[..., 0].where(inside, 0).sum(-1)
        right = (among[log_p[..., among].argmax(-1)] == target) | ~inside
        pair = log_p.argmax(-1), target
        behind, true_behind = (x.gather(1, size[there][:, None])[:, 0] for x in pair)
        ends = (behind == true_behind) | ~torch.isin(behind, among)
        new = {"nll": nll, "exact": right.all(-1) & ends}
        new |= {"gate": said.gate[:, 0, :, 0][there].float(), "thinks": thinks[there]}
        new["thoughts"] = said.thoughts.transpose(1, 2)[there]
        found.append({name: x.cpu().numpy() for name, x in new.items()})
    return {name: np.concatenate([x[name] for x in found]) for name in found[0]}


def measure_run(run, data, config):
    """{way of thinking: {column: a list by number of the text}} of a run."""
    model, tokenizer, *_ = load_run(run, pick_device("auto"))
    read = partial(read_text, tokenizer, data, texts_of(data, config.texts))
    torch.manual_seed(0)
    ways = {"": read(model)}
    row, first_seed = run.parent.name, int(run.name) == config.all_seeds()[0]
    if row == "base":
        ways[", written"] = read(written_out(model, tokenizer))
        if questions := questions_of(data, tokenizer):
            taught = taught_by_star(model, questions, tokenizer)
            ways[", taught by STaR, written"] = read(written_out(taught, tokenizer))
    if row == "heads" and first_seed:
        own = torch.from_numpy(ways[""]["thoughts"])
        ways[", another's"] = read(model, own.roll(len(own) // 2, 0))  # of another text
        ways[", random"] = read(model, torch.randint_like(own, tokenizer.vocab_size))
    if row in ("heads", *SECOND) and first_seed:
        ways[", 4 averaged"] = read(model, n_thoughts=4)
    if row in SECOND:
        ways[", left out"] = read(model.model)
    return {way: {c: x[c].astype(float).tolist() for c in COLUMNS} for way, x in ways.items()}


def read_text(tokenizer, data, texts, model, *thoughts, **how):
    """read_numbers, and right (n,): the share of thoughts whose result is the number."""
    among, (mark,) = open_dataset(data, "val").meta["answers"]["among"], tokenizer.encode("<<")
    found = read_numbers(model, texts, among, mark, *thoughts, **how)
    plain = partial(re.sub, ",", "")  # 60,000 is 60000
    wanted = [re.escape(plain(x)) for text in texts for x in numbers_in(text, tokenizer)]
    said = [[plain(tokenizer.decode(x)) for x in own] for own in found["thoughts"].tolist()]
    pairs = zip(said, wanted, strict=True)
    right = [np.mean([bool(re.match(f"([^>]*=)?{n}>>", x)) for x in own]) for own, n in pairs]
    return found | {"right": np.array(right)}


def numbers_in(text, tokenizer):
    """The numbers of a Text, as they are written."""
    places = zip(text.first.tolist(), text.size.tolist(), strict=True)
    return [tokenizer.decode(text.ids[at : at + size].tolist()) for at, size in places]


def written_out(model, tokenizer):
    """A model.Transformer that reads its own calculation as if it stood in the text: `<<`, tokens,
    `>>` (and `>>` once more, as `end`), and predicts from there alone."""
    how = {"thought_kind": "ended", "end_id": one_token(tokenizer, ">>", "end")}
    written = thinking_model(model, ThinkingConfig(thought_len=24, **how))
    start_thoughts(written, tokenizer, "<<", ">>")
    return with_gate(written.to(model.output.weight), 1.0)


def questions_of(data, tokenizer):
    """The questions of a training text that are answered by a number alone, "Q: ..", "A: 51", each
    once: a list of Question, whose prompt ends in "<<"."""
    dataset, found = open_dataset(data, "train"), {}
    for start, end in documents_of(dataset):
        text = tokenizer.decode(dataset.tokens[start : end - 1].tolist())
        question, mark, answer = text.rpartition("A: ")
        if re.fullmatch(r"[\d.]+", answer):
            prompt = tokenizer.encode(question + mark) + tokenizer.encode("<<")
            found[question] = Question(prompt, prompt, answer)
    return list(found.values())


def taught_by_star(model, questions, tokenizer):
    """STaR (beyond/star.py) on the same questions: the model fine-tuned on those of its written
    calculations that come to the answer."""
    how = {"iterations": 2, "rationalize": False, "most_tokens": 20, "lr": 5e-5}
    star = StarConfig(lambda x: tokenizer.decode(x).partition(">>")[2], tokenizer.eos_id, **how)
    with torch.autocast("cuda", torch.bfloat16, enabled=model.output.weight.is_cuda):
        *_, (taught, kept) = self_taught(model, questions, star)
    print(f"STaR: {len(kept)} of {len(questions)} calculations come to the number")
    return taught


def compare(values, others, documents):
    """Mean of values - others (n,) of the same numbers; its 95 % interval is that +- `spread`.
    Documents (n,) are independent of each other, numbers of one document are not."""
    difference = np.subtract(values, others)
    mean = float(difference.mean())
    sums = np.bincount(documents, difference - mean)
    return {"mean": mean, "spread": 1.96 * float((sums**2).sum()) ** 0.5 / len(difference)}


def numbers(config, out):
    """GSM8K's solutions, half of whose calculations are left out: the numbers there."""
    base = train_base("data/gsm8k_steps", config, out / "numbers", [])
    return study("data/gsm8k_steps", config, out / "numbers", base)


def svamp(config, out):
    """SVAMP's questions, answered at once, after a base model that has read numbers' text too."""
    base = train_base("data/gsm8k_steps", config, out / "numbers", [])
    more = [f"--init_from={base}", "--lr=1e-4", "--max_steps=75"]
    base = train_base("data/svamp", config, out / "svamp", more)
    return study("data/svamp", config, out / "svamp", base)


def train_base(data, config, out, flags):
    """Train the base model of a text: the folder of its run."""
    trial = [f"--max_steps={config.steps}"] if config.steps else []
    base = out / "base" / "0"
    train_all({base: [f"{PRESET}_base.toml", f"--data={data}", *flags, "--device=auto", *trial]}, 1)
    return base


def study(data, config, out, base):
    """Train all rows of a text from a base model, and measure them."""
    rows = {}  # {row: [{column: values}, by seed]}
    about = {"texts": config.texts, "columns": list(COLUMNS)}
    for run in tqdm(train_stages(data, config, out, base), "measuring", disable=None):
        make = partial(measure_run, run, data, config)
        for way, values in remembered(run, "numbers", make, **about).items():
            rows.setdefault(run.parent.name + way, []).append(values)
    table = {}
    for row, seeds in rows.items():
        table[row] = over_seeds([{c: float(np.mean(x[c])) for c in COLUMNS} for x in seeds])
    print_rows("numbers and thoughts", table)
    exact = {row: table[row]["exact"]["mean"] for row in table}
    room = exact["base, written"] - exact["base"]
    use = {row: (x - exact["base"]) / room for row, x in exact.items() if room}
    print("use ratio: " + ", ".join(f"{row} {x:.2f}" for row, x in use.items()))
    documents = [i for i, text in enumerate(texts_of(data, config.texts)) for _ in text.size]
    means = {row: {c: np.mean([x[c] for x in rows[row]], axis=0) for c in COLUMNS} for row in rows}
    draw(means, documents, f"numbers whose calculations are left out: {data}", out)
    return {**table, "use_ratio": use, **differences(means, documents)}


def train_stages(data, config, out, base):
    """Train all rows: the folders of their runs, the base model's first."""
    one, runs = replace(config, seeds=str(config.all_seeds()[0])), [base]
    stages = (FIRST, config, base), (PAUSE, one, base), (SECOND, one, out / "heads" / "{seed}")
    for rows, seeds, start in stages:
        flags = [f"{PRESET}.toml", f"--data={data}", f"--init_from={start}", "--base_preset="]
        folders = train_rows(seeds, out, rows, [*flags, "--device=auto"]).values()
        runs += [folder / str(seed) for folder in folders for seed in seeds.all_seeds()]
    return runs


def differences(means, documents):
    """What is gained over each row: {"heads_minus": {row: {column: see compare}}, ..}."""
    minus = {}
    for ours in ("heads", "reinforce", "reinforce, 4 averaged"):
        minus[f"{ours}_minus"] = {
            row: {c: compare(means[ours][c], x[c], documents) for c in ("nll", "exact", "right")}
            for row, x in means.items()
        }
        print_rows(f"{ours} minus each row, with 95 % intervals", minus[f"{ours}_minus"])
    return minus


def draw(means, documents, title, out):
    """A bar for each row; the written calculation is a line across them."""
    bars = {row: {"exact": compare(means[row]["exact"], 0, documents)} for row in means}
    line = bars.pop("base, written")["exact"]["mean"]
    label = "share of numbers written exactly, 95 % intervals; dashed: after a written calculation"
    draw_bars(bars, "exact", label, out.with_suffix(".png"), title, line)


if __name__ == "__main__":
    run_studies(__doc__, numbers, svamp)

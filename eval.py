"""
What did thinking bring? Base model and Quiet-STaR side by side.

    python eval.py                                        the last run in out/, on its held-out text
    python eval.py gains --run=out/mine --text=book.txt   the same on a text of yours
    python eval.py gsm8k --run=out/mine                   zero-shot questions; or commonsense_qa

Each command has its own --help. `gains` predicts every token with the base model, with the trained
model without thoughts, and with the trained model after one greedy thought per position, as the
paper does. It leaves a table, pictures, results.json, and gains.html, which shows each thought.

  NLL    negative log-likelihood of the true token, in nats: 0 where the model was sure of it
  gain   nats that a thought saves on a token: NLL without the thought minus NLL after it
  gate   weight of the thought in the prediction: 0 takes the one without it, 1 the one after it
"""

import sys
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from beyond.kinds import with_gate
from data.dataset import open_dataset
from data.text import read_documents, text_files
from fast import likeliest, token_log_prob
from lib.config import run_script
from lib.files import write_json
from lib.page import write_page
from lib.pictures import draw_bars, draw_curves, draw_text, mean_and_error, print_rows
from lib.questions import QuestionsConfig, ask_all
from lib.runs import LoadConfig, read_log
from lib.subject import Subject, SubjectConfig
from quiet_star import QuietSTaR


@dataclass
class GainsConfig(SubjectConfig):
    text: str = ""  # a text file, or a folder of them; empty: the held-out text of the run
    texts: int = 512  # spans to measure on
    span: int = 0  # tokens in each span; 0: as many as in training

    def __post_init__(self):
        if min(self.texts, self.batch_size) < 1:
            raise ValueError("texts and batch_size must be at least 1")


@dataclass
class Measured:
    """What a model predicts for each token of W spans of T tokens: arrays (W, T)."""

    nll_base: np.ndarray  # nats, without a thought
    right_base: np.ndarray  # bool: is the true token the likeliest that an answer can have?
    likeliest_base: np.ndarray  # id of the likeliest token, of the spans that are shown
    nll_mixed: np.ndarray | None = None  # the same after a thought, if the model thinks
    right_mixed: np.ndarray | None = None
    likeliest_mixed: np.ndarray | None = None
    gate: np.ndarray | None = None  # weight of the thought in the prediction
    thoughts: np.ndarray | None = None  # (W, T, m) ids, -1 behind the end of one
    expected_gain: np.ndarray | None = None  # nats, of the gain head; (W, T, m+1) if lengths differ


def spread_spans(tokens, span, texts):
    """Spans that do not overlap, evenly spread over a text: int64 ids (W, span + 1), W <= texts."""
    if len(tokens) <= span:
        raise ValueError(f"a text of {len(tokens)} tokens is too short for --span={span}")
    spans = np.lib.stride_tricks.sliding_window_view(tokens, span + 1)[::span]
    chosen = np.linspace(0, len(spans) - 1, min(texts, len(spans))).astype(np.int64)
    return spans[chosen].astype(np.int64)


def held_out_spans(dataset, span, texts):
    """Spans (W, T+1) of a dataset, and where an answer is predicted, bool (W, T). An answer counts
    if its document begins within the span and the end of the span does not cut it."""
    spans, answers = (spread_spans(x, span, texts) for x in (dataset.tokens, dataset.answers))
    begun = (spans[:, :-1] == dataset.meta["document_end"]).cumsum(1) > 0
    places = begun & (answers[:, 1:] > 0)
    if (places[:, 1:] & places[:, :-1]).any():  # of several tokens: at the very end one may be cut
        places &= ~np.logical_and.accumulate(places[:, ::-1], 1)[:, ::-1]
    return spans, places


def text_to_measure(config, subject):
    """Spans (W, T+1) of the text that is asked for, where they have answers (W, T), and the meta of
    their dataset ({} for a text file)."""
    train = subject.settings["train"] if subject.settings else {"span": 256}
    span = config.span or train["span"]
    if config.text:
        documents = read_documents(text_files(config.text), "")
        tokens = np.concatenate([subject.tokenizer.encode(text) for text in documents] or [[]])
        spans = spread_spans(tokens, min(span, max(1, len(tokens) - 1)), config.texts)
        return spans, np.zeros_like(spans[:, 1:], bool), {}
    if "data" not in train:
        raise ValueError(f"{subject.run} has no data of its own: name a text with --text")
    dataset = open_dataset(train["data"], "val")
    if dataset.meta["tokenizer"] != subject.settings["tokenizer"]:
        raise ValueError(f"{dataset.path} was made with another tokenizer than {subject.run}")
    return *held_out_spans(dataset, span, config.texts), dataset.meta


@torch.inference_mode()
def measure(model, spans, meta, batch_size=16, thoughts=None, gate=None, temperature=0.0, shown=0):
    """Predict every token of spans (W, T+1), of a dataset with this meta: Measured. A model that
    thinks reads thoughts (W, T, m) if they are given, else its own (greedy ones at temperature 0).
    gate: a number that replaces the gate of its mixing head. shown: of how many spans, from the
    first, to find the likeliest tokens; over a large vocabulary that takes long."""
    thinking, parts = isinstance(model, QuietSTaR), []
    head = model.model.output if thinking else model.output
    among = torch.tensor((meta.get("answers") or {}).get("among") or [0], device=head.weight.device)
    generator = torch.Generator().manual_seed(1337)
    if thinking:
        model = model.with_settings(n_thoughts=1, n_true=1, thought_temperature=temperature)
    if gate is not None:
        model = with_gate(model, gate)
    for start in tqdm(range(0, len(spans), batch_size), "measuring", leave=False, disable=None):
        rows = slice(start, start + batch_size)
        tokens = torch.from_numpy(spans[rows]).to(among)
        if thinking:
            fixed = None if thoughts is None else torch.from_numpy(thoughts[rows, None]).to(among)
            shape = len(tokens), 1, tokens.shape[1] - 1, model.config.thought_len
            noise = torch.rand(shape, generator=generator).to(tokens.device)
            h_base, h_mixed, gates, used = model.predict(tokens, thoughts=fixed, noise=noise)
            hidden = {"base": h_base[:, 0, :, 0], "mixed": h_mixed[:, 0, :, -1]}  # (B, T, C)
            part = {"gate": gates[:, 0, :, -1].float(), "thoughts": used[:, 0]}
            if hasattr(model, "counts"):  # what stands behind the end of a thought nobody reads
                part["thoughts"] = used[:, 0].where(model.counts(used[:, 0]), -1)
            if hasattr(model, "gain_head"):
                part["expected_gain"] = model.gain_head(hidden["base"]).float()
        else:
            hidden, part = {"base": model(tokens[:, :-1])}, {}
        for name, h in hidden.items():
            answer = among[(h @ head.weight[among].T).argmax(-1)]
            part[f"nll_{name}"] = -token_log_prob(head, h, tokens[:, 1:])
            part[f"right_{name}"] = answer == tokens[:, 1:]
            part[f"likeliest_{name}"] = likeliest(head, h[: max(0, shown - start)])
        parts.append(part)
    return Measured(**{k: torch.cat([part[k] for part in parts]).cpu().numpy() for k in parts[0]})


def predicted(measured):
    """NLL and rightness (W, T) of what a model says: after a thought, if it thinks."""
    if measured.nll_mixed is None:
        return measured.nll_base, measured.right_base
    return measured.nll_mixed, measured.right_mixed


def summarize(nll, right, answers):
    """A row of the table: means over answers and over other tokens (W, T), with standard errors.
    The tokens of an answer follow one another: all must be right, and their NLLs add up."""
    row = {}
    if answers.any():
        follows = np.pad(answers, ((0, 0), (1, 0)))[:, :-1]
        starts = np.flatnonzero((answers & ~follows)[answers])
        row["answer_accuracy"] = mean_and_error(np.logical_and.reduceat(right[answers], starts))
        row["answer_nll"] = mean_and_error(np.add.reduceat(nll[answers], starts))
    row["other_nll"] = mean_and_error(nll[~answers])
    return row


def tenths(nll_base, gain):
    """Tenths of the tokens, by their NLL without a thought: mean gains with 95 % intervals, rows of
    lib.pictures.draw_bars."""
    rows = {}
    for n, some in enumerate(np.array_split(np.argsort(nll_base, axis=None), min(10, gain.size))):
        nll, there = float(nll_base.flat[some].mean()), mean_and_error(gain.flat[some])
        there["spread"] *= 1.96
        rows[f"{n + 1}: NLL {nll:.2f}"] = {"nll_base": nll, "gain": there}
    return rows


def gains(config, load=None):
    """Measure a run against its base: a table, results.json, gains.html and pictures."""
    subject = Subject(config, load)
    model, tokenizer, run = subject.model, subject.tokenizer, subject.run
    if not isinstance(model, QuietSTaR):
        raise ValueError(f"{run} is a plain language model: name a thinking one with --run")
    spans, answers, meta = text_to_measure(config, subject)
    name = config.text and Path(config.text).resolve().name
    out, asked = subject.claim(name, checksum=zlib.crc32(spans.tobytes()))

    rows, base = {}, None
    if subject.base:
        base_model, other, *_ = subject.read(subject.base)
        if other.to_json() != tokenizer.to_json():
            raise ValueError(f"{subject.base} has another tokenizer than the run")
        base = measure(base_model, spans, meta, config.batch_size)
        rows["base"] = summarize(base.nll_base, base.right_base, answers)
    how = {"temperature": subject.load.thought_temperature, "shown": 1 + 3000 // spans.shape[1]}
    trained = measure(model, spans, meta, config.batch_size, **how)
    rows["without_thoughts"] = summarize(trained.nll_base, trained.right_base, answers)
    rows["quiet_star"] = summarize(*predicted(trained), answers)
    gain = trained.nll_base - trained.nll_mixed
    mean, error = mean_and_error(gain).values()
    by_difficulty = tenths((base or trained).nll_base, gain)
    results = {**rows, "gain": {"nats_per_token": mean, "error": error}, "tokens": gain.size}
    results["gain"] |= {"perplexity_ratio": float(np.exp(-mean)), "by_difficulty": by_difficulty}
    results |= {"gate": float(trained.gate.mean()), "answers": int(answers.sum()), "asked": asked}
    write_json(out / "results.json", results)
    print_rows("NLL in nats; an answer is right if each of its tokens is the likeliest", rows, 4)
    title = f"{run}, step {subject.step}: a thought saves {mean:+.4f} ± {error:.4f} nats per token"
    ratio = results["gain"]["perplexity_ratio"]
    print(f"{title}, perplexity x {ratio:.4f}, on {gain.size:,} tokens, {answers.sum():,} answers")

    write_page(out / "gains.html", title, spans[: how["shown"]], trained, tokenizer)
    draw_documents(spans, gain, meta.get("document_end"), tokenizer, out / "gains_text.png")
    about = "nats that a thought saves", out / "gains_by_difficulty.png", "Tokens by their NLL"
    draw_bars(by_difficulty, "gain", *about)
    if subject.settings:
        draw_curves(read_log(run), out / "curves.png")
    print(f"results.json, gains.html and pictures are in {out}")


def draw_documents(spans, gain, document_end, tokenizer, path):
    """The first documents that no end of spans (W, T+1) cuts; all of the text if there are none."""
    ends = spans == document_end
    shown = (ends[:, :-1].cumsum(1) > 0) & (ends[:, :0:-1].cumsum(1)[:, ::-1] > 0)
    shown = shown if shown.any() else ~shown
    draw_text(tokenizer.words(spans[:, 1:][shown][:640].tolist()), gain[shown][:640], path)


COMMANDS = {"gains": GainsConfig, "gsm8k": QuestionsConfig, "commonsense_qa": QuestionsConfig}


def main():
    arguments = sys.argv[1:]
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "gains"
    if command not in COMMANDS:
        sys.exit(f"eval.py: error: there is no command {command!r}, but {', '.join(COMMANDS)}")
    function = gains if command == "gains" else partial(ask_all, command)
    run_script("eval.py", __doc__, function, COMMANDS[command], LoadConfig, argv=arguments)


if __name__ == "__main__":
    main()

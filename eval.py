"""
What did thinking bring? Base model and Quiet-STaR side by side.

    python eval.py                                        the last run in out/ on its held-out text, token by token
    python eval.py gains --run=out/mine --text=book.txt   the same on a text of yours
    python eval.py gsm8k --run=out/mine                   zero-shot questions (lib/questions.py, data/gsm8k)
    python eval.py commonsense_qa --run=out/mine          zero-shot questions (lib/questions.py, data/commonsense_qa)

Each has settings of its own: python eval.py gsm8k --help. In gains, every token is predicted three ways: by the base
model that training started from, by the trained model without thoughts, and by the trained model after one greedy
thought per position (as the paper evaluates). It leaves a table, pictures, results.json, and gains.html, in which each
token tells its thought.
"""

import sys
import time
import zlib
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lean.log_prob import likeliest, token_log_prob
from tqdm import tqdm

from data.dataset import open_dataset
from data.text import read_documents, text_files
from lib.config import run_script
from lib.files import lock, refuse_another, write_json
from lib.page import write_page
from lib.parallel import pick_device
from lib.pictures import draw_curves, draw_difficulty, draw_text, mean_and_error
from lib.questions import QuestionsConfig, ask_all, must_exist
from lib.runs import LoadConfig, last_run, load_to_think, read_log
from quiet_star import QuietSTaR


@dataclass
class GainsConfig:
    run: str = ""  # folder of the run, or of exported weights; empty: the last thinking one in out/
    base: str = ""  # folder of the base model; empty: the one the run started from
    text: str = (
        ""  # a text file, or a folder of them, to measure on; empty: the held-out text of the run
    )
    out: str = ""  # folder to write; empty: one in the run's
    texts: int = 512  # spans to measure on
    span: int = 0  # tokens in each; 0: as many as in training
    page_tokens: int = 3000  # tokens shown in gains.html
    batch_size: int = 32  # spans per forward
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one

    def __post_init__(self):
        if min(self.texts, self.batch_size, self.page_tokens) < 1 or self.span < 0:
            raise ValueError(
                "texts, batch_size and page_tokens must be at least 1, span not negative"
            )


@dataclass
class Measured:
    """Predictions of a model for each token of W held-out spans of T tokens, arrays (W, T)."""

    nll_base: np.ndarray  # nats, without thoughts
    right_base: (
        np.ndarray
    )  # bool: of the possible answers, was the true one the likeliest? (meaningful at answers)
    seconds: float
    # of a model that thinks:
    nll_mixed: np.ndarray | None = None  # nats, after a greedy thought
    right_mixed: np.ndarray | None = None
    gate: np.ndarray | None = None  # how much of the thought went in
    thoughts: np.ndarray | None = None  # (W, T, m) the thoughts
    expected_gain: np.ndarray | None = (
        None  # nats the gain head expects of a thought, before it, if there is one; or
    )
    # (W, T, m+1), of a thought of each length
    # where it was asked for, else -1:
    likeliest_base: np.ndarray | None = None  # the likeliest token, without a thought
    likeliest_mixed: np.ndarray | None = None


def spread_spans(tokens, span, texts):
    """Spans of a long text's tokens that do not overlap, evenly spread: int64 ids (W, span + 1), W <= texts."""
    available = (len(tokens) - 1) // span
    if available < 1:
        raise ValueError(
            f"a text of {len(tokens)} tokens is shorter than one span of {span}: see --span"
        )
    starts = np.linspace(0, available - 1, min(texts, available)).astype(np.int64) * span
    return np.stack([tokens[s : s + span + 1] for s in starts]).astype(np.int64)


def held_out_spans(dataset, span, texts):
    """Spans of a dataset (W, T+1), and where they have answers (W, T)."""
    spans, answers = (spread_spans(x, span, texts) for x in (dataset.tokens, dataset.answers))
    return spans, answer_places(spans, answers > 0, dataset.meta["document_end"])


def answer_places(spans, answers, document_end):
    """Where spans (W, T+1) have an answer to be predicted: bool (W, T). answers (W, T+1): which tokens are one's. Only
    those count whose document begins in the span, and which are not cut by its end (as far as it can be seen)."""
    begun = (spans[:, :-1] == document_end).cumsum(1) > 0
    found = begun & answers[:, 1:]
    many = (
        found[:, 1:] & found[:, :-1]
    ).any()  # answers of several tokens: one at the very end may go on
    return found & ~np.logical_and.accumulate(found[:, ::-1], 1)[:, ::-1] if many else found


@torch.no_grad()
def measure(
    model, spans, meta, device="cpu", batch_size=32, title="measuring",
    thoughts=None, gate=None, words=(), temperature=0.0,
):  # fmt: skip
    """Predict every token of spans (W, T+1): Measured. Thoughts are greedy, or drawn at a temperature. To ask what it
    is that helps, let the model read thoughts (W, T, m) that are given instead, or force its gate to a number. words:
    numbers of the spans whose likeliest tokens are wanted, too."""
    start, parts = time.perf_counter(), []
    among = (meta.get("answers") or {}).get("among") or [0]
    thinking = isinstance(model, QuietSTaR)
    if thinking:
        model = model.with_settings(n_thoughts=1, n_true=1, thought_temperature=temperature)
    transformer = model.model if thinking else model
    head, generator = transformer.output, torch.Generator().manual_seed(1337)
    for i in tqdm(range(0, len(spans), batch_size), desc=title, leave=False, disable=None):
        tokens = torch.from_numpy(spans[i : i + batch_size]).to(device)
        target, asked = (
            tokens[:, 1:],
            not set(words).isdisjoint(range(i, min(i + batch_size, len(spans)))),
        )

        def judge(
            hidden, target=target
        ):  # (B, T, C) -> NLL of the true token, and is it the likeliest answer?
            said = torch.as_tensor(among, device=device)[(hidden @ head.weight[among].T).argmax(-1)]
            return -token_log_prob(head, hidden, target), said == target

        part = {}
        if thinking:
            given = (
                None
                if thoughts is None
                else torch.from_numpy(thoughts[i : i + batch_size, None]).to(device)
            )
            noise = torch.rand(
                len(target), 1, target.shape[1], model.config.thought_len, generator=generator
            )
            thought = model.think(tokens, given, noise=noise.to(device))
            h_base, h_thought = (
                thought.h_base[:, 0, :, 0],
                thought.h_thought[:, 0, :, -1],
            )  # (B, T, C)
            h_mixed, w = model.talk(h_base, h_thought)
            if gate is not None:
                h_mixed, w = h_base + gate * (h_thought - h_base), torch.full_like(w, gate)
            part = {"gate": w, "thoughts": thought.tokens[:, 0]}
            part["nll_mixed"], part["right_mixed"] = judge(h_mixed)
            part["likeliest_mixed"] = (
                likeliest(head, h_mixed) if asked else torch.full_like(target, -1)
            )
            if hasattr(model, "gain_head"):
                part["expected_gain"] = model.gain_head(h_base)
        else:
            h_base = transformer(tokens[:, :-1])
        part["nll_base"], part["right_base"] = judge(h_base)
        part["likeliest_base"] = likeliest(head, h_base) if asked else torch.full_like(target, -1)
        parts.append(part)
    columns = {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in parts[0]}
    return Measured(**columns, seconds=time.perf_counter() - start)


def predicted(found):
    """NLL and rightness of what a model says at last, of Measured: after a thought, if it thinks."""
    thinks = found.nll_mixed is not None
    return (found.nll_mixed, found.right_mixed) if thinks else (found.nll_base, found.right_base)


def summarize(nll, right, answers):
    """One row of the table: means over answers and over other tokens, with standard errors. nll, right (W, T): see
    `predicted`. Of an answer of several tokens, which follow one another, all must be right, and NLLs add up."""
    row = {"other_nll": mean_and_error(nll[~answers])}
    if answers.any():
        first = answers & ~np.pad(answers, ((0, 0), (1, 0)))[:, :-1]
        starts = np.flatnonzero(first[answers])
        row["answer_accuracy"] = mean_and_error(np.logical_and.reduceat(right[answers], starts))
        row["answer_nll"] = mean_and_error(np.add.reduceat(nll[answers], starts))
    return {
        k: v
        for name, (mean, error) in row.items()
        for k, v in ((name, mean), (f"{name}_error", error))
    }


def print_table(rows):
    """rows: {name: summary}, printed with one line per name."""
    columns = [
        c
        for c in ("answer_accuracy", "answer_nll", "other_nll")
        if any(c in row for row in rows.values())
    ]
    width = max(len(name) for name in rows)
    print(f"{'':{width}}  " + "  ".join(f"{c:>18}" for c in columns))
    for name, row in rows.items():
        cells = [f"{row[c]:.4f} ± {row[c + '_error']:.4f}" if c in row else "" for c in columns]
        print(f"{name:{width}}  " + "  ".join(f"{cell:>18}" for cell in cells))


def text_to_measure(config, settings, tokenizer):
    """Spans (W, T+1) of the text that the settings name, where they have answers (W, T), and the dataset's meta (of a
    text file: empty)."""
    span = config.span or (settings["train"]["span"] if settings else 256)
    if config.text:
        documents = [text for text, _ in read_documents(text_files(config.text), "")]
        tokens = np.concatenate([tokenizer.encode(text) for text in documents] or [[]])
        spans = spread_spans(tokens, min(span, max(1, len(tokens) - 1)), config.texts)
        return spans, np.zeros_like(spans[:, 1:], bool), {}
    if not settings:
        raise ValueError(f"{config.run} has no data of its own: name a text with --text")
    dataset = open_dataset(settings["train"]["data"], "val")
    if dataset.meta["tokenizer"] != settings["tokenizer"]:
        raise ValueError(
            f"{settings['train']['data']} was made with another tokenizer than {config.run}"
        )
    return *held_out_spans(dataset, span, config.texts), dataset.meta


def pieces_to_show(spans, first, wrong, document_end, tokens=640, most_wrong=3):
    """What the picture shows of spans (W, T+1), from span `first` on: [(span, slice of its T predictions)]. These are
    whole documents, if enough of them lie within spans, and the last of them have a `wrong` (W, T) prediction."""
    ends = [np.flatnonzero(span == document_end) for span in spans]
    documents = [
        (w, slice(a, b))
        for w, of_span in enumerate(ends)
        for a, b in zip(of_span, of_span[1:], strict=False)
    ]
    if len(documents) < tokens // 32:
        return [
            (w, slice(None))
            for w in range(first, first + max(1, tokens // spans.shape[1]))
            if w < len(spans)
        ]
    bad = [(w, part) for w, part in documents if wrong[w, part].any()][:most_wrong]
    good = [(w, part) for w, part in documents if w >= first and (w, part) not in bad]
    sizes = np.cumsum([part.stop - part.start for _, part in good])
    return good[: int((sizes <= tokens).sum())] + bad


def gains(config, load=None):
    """Measure one run against its base, print the table, draw the pictures, write results.json and gains.html."""
    device, load = pick_device(config.device), load or LoadConfig()
    run = Path(config.run) if config.run else last_run()
    model, tokenizer, settings, step = load_to_think(run, device, load)
    if not isinstance(model, QuietSTaR):
        raise ValueError(f"{run} is a plain language model: name a thinking one with --run")
    spans, answers, meta = text_to_measure(config, settings, tokenizer)
    out = Path(
        config.out
        or (run / f"eval_step{step:06d}" if settings else f"out/eval_{run.resolve().name}")
    )
    if config.text and not config.out:
        out = out / Path(config.text).name
    base_folder = config.base or (settings["train"]["init_from"] if settings else "")
    must_exist(base_folder)
    asked = {
        "run": str(run),
        "base_run": base_folder,
        "text": config.text,
        "texts": config.texts,
        "span": config.span,
    }
    asked |= asdict(load)
    asked["tokens' checksum"] = zlib.crc32(spans.tobytes())
    refuse_another(out / "results.json", asked)
    out.mkdir(parents=True, exist_ok=True)
    _held = lock(out, "measuring")  # until this function returns

    first = next((w for w in range(len(spans)) if answers[w].any()), 0)
    on_page = range(first, min(len(spans), first + -(-config.page_tokens // spans.shape[1])))
    trained = measure(
        model,
        spans,
        meta,
        device,
        config.batch_size,
        "thinking",
        words=on_page,
        temperature=load.thought_temperature,
    )
    rows, difficulty = {}, trained.nll_base
    if base_folder:
        base_model, its_tokenizer, *_ = load_to_think(base_folder, device, load)
        if its_tokenizer.to_json() != tokenizer.to_json():
            raise ValueError(f"the model in {base_folder} has another tokenizer than {run}")
        base_model = base_model.model if isinstance(base_model, QuietSTaR) else base_model
        base = measure(base_model, spans, meta, device, config.batch_size, "base")
        rows["base"], difficulty = summarize(base.nll_base, base.right_base, answers), base.nll_base
    rows["without_thoughts"] = summarize(trained.nll_base, trained.right_base, answers)
    rows["quiet_star"] = summarize(trained.nll_mixed, trained.right_mixed, answers)

    gain = trained.nll_base - trained.nll_mixed
    mean, error = mean_and_error(gain)
    wrong = answers & ~trained.right_mixed
    shown = pieces_to_show(spans, first, wrong, meta.get("document_end"))
    words = [
        word for w, part in shown for word in [*tokenizer.words(spans[w].tolist())[1:][part], None]
    ]
    of_words = [np.concatenate([[*x[w, part], 0] for w, part in shown]) for x in (gain, wrong)]
    title = "Each token, and what it gained from its thought" + " (boxed: wrong answers)" * bool(
        wrong.any()
    )
    draw_text(words, *of_words, out / "gains_text.png", title)
    deciles = draw_difficulty(difficulty, gain, out / "gains_by_difficulty.png")
    if settings:
        draw_curves(read_log(run), out / "curves.png")
    caption = f"{run}, step {step}: a thought saves {mean:+.4f} ± {error:.4f} nats per token on {gain.size:,} tokens"
    write_page(out / "gains.html", caption, spans, trained, on_page, tokenizer)
    where = {"everywhere": ...} | (
        {"at_answers": answers, "elsewhere": ~answers} if answers.any() else {}
    )
    ratio = float(np.exp(-mean))
    results = {
        **rows,
        "gain": {
            "nats_per_token": mean,
            "error": error,
            "perplexity_ratio": ratio,
            "by_difficulty": deciles,
        },
        "gate": {name: float(trained.gate[some].mean()) for name, some in where.items()},
        "tokens": int(gain.size),
        "answers": int(answers.sum()),
        "step": step,
        "seed": settings["train"]["seed"] if settings else None,
        "asked": asked,
    }
    write_json(out / "results.json", results)

    print(
        f"{run}, step {step}: {gain.size:,} held-out tokens, {answers.sum():,} answers; mean ± standard error"
    )
    print_table(rows)
    print(f"a thought saves {mean:+.4f} ± {error:.4f} nats per token: perplexity x {ratio:.4f}")
    print(f"pictures, gains.html and results.json are in {out}")


COMMANDS = {"gains": GainsConfig, "gsm8k": QuestionsConfig, "commonsense_qa": QuestionsConfig}


def main():
    arguments = sys.argv[1:]
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "gains"
    if command not in COMMANDS:
        sys.exit(
            f"eval.py: error: there is no command {command!r}: it is one of {', '.join(COMMANDS)}"
        )
    function = gains if command == "gains" else partial(ask_all, command)
    run_script("eval.py", __doc__, function, COMMANDS[command], LoadConfig, argv=arguments)


if __name__ == "__main__":
    main()

"""
What did thinking bring? Base model and Quiet-STaR side by side.

    python eval.py                                        the last run in out/ on its held-out text, token by token
    python eval.py gains --run=out/mine --text=book.txt   the same on a text of yours
    python eval.py gsm8k --run=out/mine                   zero-shot questions (questions.py, data/gsm8k)
    python eval.py commonsense_qa --run=out/mine          zero-shot questions (questions.py, data/commonsense_qa)
    python eval.py demo --out=out/demo                    the table of `make demo`
    python eval.py curve --runs=out/one,out/other         what gains found of runs, at each step it looked at

Each has settings of its own: python eval.py gsm8k --help. In gains, every token is predicted three ways: by the base
model that training started from, by the trained model without thoughts, and by the trained model after one greedy
thought per position (as the paper evaluates). It leaves a table, pictures, results.json, and gains.html, in which each
token tells its thought.
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from checkpoint import load_model, load_run, must_think, read_config, read_log
from config import from_cli
from data.dataset import open_dataset, replace_file
from data.text import read_documents, text_files
from page import write_page
from parallel import pick_device
from pictures import draw_curves, draw_difficulty, draw_mask, draw_runs, draw_sweep, draw_text, mean_and_error
from questions import QuestionsConfig, ask_all, must_exist
from quiet_star import QuietSTaR, token_log_prob


@dataclass
class GainsConfig:
    run: str = ""  # folder of the run, or of exported weights; empty: the last thinking one in out/
    base: str = ""  # folder of the base model; empty: the one the run started from
    text: str = ""  # a text file, or a folder of them, to measure on; empty: the held-out text of the run
    out: str = ""  # folder to write; empty: one in the run's
    texts: int = 512  # spans to measure on
    span: int = 0  # tokens in each; 0: as many as in training
    page_tokens: int = 3000  # tokens shown in gains.html
    batch_size: int = 32  # spans per forward
    device: str = "auto"  # "cpu", "cuda", or "auto": cuda where there is one

    def __post_init__(self):
        if min(self.texts, self.batch_size, self.page_tokens) < 1 or self.span < 0:
            raise ValueError("texts, batch_size and page_tokens must be at least 1, span not negative")


@dataclass
class DemoConfig:
    out: str = "out/demo"  # folder whose runs base, lm_control, quiet_star, thought_len_* are compared
    texts: int = 512  # held-out spans to measure on
    batch_size: int = 32  # spans per forward
    device: str = "auto"  # "cpu", "cuda", or "auto": cuda where there is one

    def __post_init__(self):
        if self.texts < 1 or self.batch_size < 1:
            raise ValueError("texts and batch_size must be at least 1")


@dataclass
class CurveConfig:
    runs: str = ""  # folders of runs, with commas between them, each measured by gains at some steps
    out: str = ""  # folder to write; empty: the one that holds the first run
    device: str = "cpu"  # nothing is computed

    def __post_init__(self):
        if not self.runs:
            raise ValueError("--runs is needed: folders of runs, with commas between them")


# ----------------------------------------------------------------------------------------------------------------------
# measuring


@dataclass
class Measured:
    """Predictions of a model for each token of W held-out spans of T tokens, arrays (W, T)."""

    nll_base: np.ndarray  # nats, without thoughts
    nll_mixed: np.ndarray | None  # nats, after a greedy thought; None for a plain language model
    gate: np.ndarray | None  # how much of the thought went in
    thoughts: np.ndarray | None  # (W, T, m) the thoughts
    right_base: np.ndarray  # bool: of the possible answers, was the true one the likeliest? (meaningful at answers)
    right_mixed: np.ndarray | None
    expected_gain: np.ndarray | None  # nats the gain head expects of a thought, before it
    seconds: float


def spread_spans(tokens, span, texts):
    """Spans of a long text's tokens that do not overlap, evenly spread: int64 ids (W, span + 1), W <= texts."""
    available = (len(tokens) - 1) // span
    if available < 1:
        raise ValueError(f"a text of {len(tokens)} tokens is shorter than one span of {span}: see --span")
    starts = np.linspace(0, available - 1, min(texts, available)).astype(np.int64) * span
    return np.stack([tokens[s : s + span + 1] for s in starts]).astype(np.int64)


def answer_places(spans, meta):
    """Where spans (W, T+1) have an answer to be predicted: bool (W, T), all False if the data has no answers.

    An answer is a token of meta's answers["among"] right after answers["after"], with its whole document in the span.
    """
    answers = meta.get("answers")
    if not answers:
        return np.zeros_like(spans[:, 1:], dtype=bool)
    whole = (spans[:, :-1] == meta["document_end"]).cumsum(1) > 0
    return whole & (spans[:, :-1] == answers["after"]) & np.isin(spans[:, 1:], answers["among"])


@torch.no_grad()
def measure(model, spans, meta, device="cpu", batch_size=32, title="measuring", thoughts=None, gate=None):
    """Predict every token of spans (W, T+1): Measured. Thoughts are greedy; to ask what it is that helps, let the model
    read thoughts (W, T, m) that are given instead, or force its gate to a number."""
    start, parts = time.perf_counter(), []
    among = (meta.get("answers") or {}).get("among") or [0]
    thinking = isinstance(model, QuietSTaR)
    if thinking:
        model = model.with_settings(n_thoughts=1, n_true=1, thought_temperature=0.0)
    head = model.model.output if thinking else model.output
    for i in tqdm(range(0, len(spans), batch_size), desc=title, leave=False, disable=None):
        tokens = torch.from_numpy(spans[i : i + batch_size]).to(device)
        target = tokens[:, 1:]

        def judge(hidden, target=target):  # (B, T, C) -> NLL of the true token, and is it the likeliest answer?
            likeliest = torch.as_tensor(among, device=device)[(hidden @ head.weight[among].T).argmax(-1)]
            return -token_log_prob(head, hidden, target), likeliest == target

        if not thinking:
            parts.append(judge(model(tokens[:, :-1])))
            continue
        given = None if thoughts is None else torch.from_numpy(thoughts[i : i + batch_size, None]).to(device)
        thought = model.think(tokens, given)
        h_base, h_thought = thought.h_base[:, 0, :, 0], thought.h_thought[:, 0, :, 0]  # (B, T, C)
        h_mixed, w = model.mix(h_base, h_thought)
        if gate is not None:
            h_mixed, w = h_base + gate * (h_thought - h_base), torch.full_like(w, gate)
        mixed = *judge(h_mixed), w, thought.tokens[:, 0], model.gain_head(h_base)
        parts.append((*judge(thought.h_text), *mixed))
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    nll_base, right_base, *of_thoughts = columns
    nll_mixed, right_mixed, w, said, expected = of_thoughts or [None] * 5
    return Measured(nll_base, nll_mixed, w, said, right_base, right_mixed, expected, time.perf_counter() - start)


def predicted(found):
    """NLL and rightness of what a model says at last, of Measured: after a thought, if it thinks."""
    thinks = found.nll_mixed is not None
    return (found.nll_mixed, found.right_mixed) if thinks else (found.nll_base, found.right_base)


def summarize(nll, right, answers):
    """One row of the table: means over tokens, with standard errors. nll, right (W, T): see `predicted`."""
    row = {"other_nll": mean_and_error(nll[~answers])}
    if answers.any():
        row |= {"answer_accuracy": mean_and_error(right[answers]), "answer_nll": mean_and_error(nll[answers])}
    return {k: v for name, (mean, error) in row.items() for k, v in ((name, mean), (f"{name}_error", error))}


def print_table(rows):
    """rows: {name: summary}, printed with one line per name."""
    columns = [c for c in ("answer_accuracy", "answer_nll", "other_nll") if any(c in row for row in rows.values())]
    width = max(len(name) for name in rows)
    print(f"{'':{width}}  " + "  ".join(f"{c:>18}" for c in columns))
    for name, row in rows.items():
        cells = [f"{row[c]:.4f} ± {row[c + '_error']:.4f}" if c in row else "" for c in columns]
        print(f"{name:{width}}  " + "  ".join(f"{cell:>18}" for cell in cells))


# ----------------------------------------------------------------------------------------------------------------------
# gains: one run


def last_run():
    """The folder in out/ whose thinking model was saved last."""
    found = sorted(Path("out").glob("**/checkpoint.*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        if read_config(path.parent)["train"]["objective"] == "quiet_star":
            return path.parent
    raise ValueError("no thinking model in out/ yet: train one (python train.py), or name one with --run")


def text_to_measure(config, settings, tokenizer):
    """Spans (W, T+1) of the text that the settings name, and the dataset's meta (of a text file: without answers)."""
    span = config.span or (settings["train"]["span"] if settings else 256)
    if config.text:
        documents = [text for text, _ in read_documents(text_files(config.text), "")]
        tokens = np.concatenate([tokenizer.encode(text) for text in documents] or [[]])
        return spread_spans(tokens, min(span, max(1, len(tokens) - 1)), config.texts), {}
    if not settings:
        raise ValueError(f"{config.run} has no data of its own: name a text with --text")
    dataset = open_dataset(settings["train"]["data"], "val")
    if dataset.meta["tokenizer"] != settings["tokenizer"]:
        raise ValueError(f"{settings['train']['data']} was made with another tokenizer than {config.run}")
    return spread_spans(dataset.tokens, span, config.texts), dataset.meta


def gains(config, device):
    """Measure one run against its base, print the table, draw the pictures, write results.json and gains.html."""
    run = Path(config.run) if config.run else last_run()
    model, tokenizer, settings, step = load_model(run, device)
    must_think(model, run)
    spans, meta = text_to_measure(config, settings, tokenizer)
    answers = answer_places(spans, meta)
    out = Path(config.out or (run / f"eval_step{step:06d}" if settings else f"out/eval_{run.resolve().name}"))
    if config.text and not config.out:
        out = out / Path(config.text).name
    base_folder = config.base or (settings["train"]["init_from"] if settings else "")
    must_exist(base_folder)
    out.mkdir(parents=True, exist_ok=True)

    trained = measure(model, spans, meta, device, config.batch_size, "thinking")
    rows, difficulty = {}, trained.nll_base
    if base_folder:
        base_model, its_tokenizer, *_ = load_model(base_folder, device)
        if its_tokenizer.to_json() != tokenizer.to_json():
            raise ValueError(f"the model in {base_folder} has another tokenizer than {run}")
        base_model = base_model.model if isinstance(base_model, QuietSTaR) else base_model
        base = measure(base_model, spans, meta, device, config.batch_size, "base")
        rows["base"], difficulty = summarize(base.nll_base, base.right_base, answers), base.nll_base
    rows["without_thoughts"] = summarize(trained.nll_base, trained.right_base, answers)
    rows["quiet_star"] = summarize(trained.nll_mixed, trained.right_mixed, answers)

    gain = trained.nll_base - trained.nll_mixed
    mean, error = mean_and_error(gain)
    first = next(w for w in range(len(spans)) if not answers.any() or answers[w].any())
    shown = slice(first, first + max(1, 640 // spans.shape[1]))
    words = [word for span in spans[shown] for word in [*tokenizer.words(span.tolist())[1:], None]]
    by_word = np.pad(gain[shown], ((0, 0), (0, 1)), constant_values=np.nan).flatten()  # one span after the other
    draw_text(words, by_word, out / "gains_text.png", "Each token, and what it gained from its thought")
    deciles = draw_difficulty(difficulty, gain, out / "gains_by_difficulty.png")
    draw_mask(out / "mask.png")
    if settings:
        draw_curves(read_log(run), out / "curves.png")
    shown = slice(first, first + -(-config.page_tokens // spans.shape[1]))
    caption = f"{run}, step {step}: a thought saves {mean:+.4f} ± {error:.4f} nats per token on {gain.size:,} tokens"
    write_page(out / "gains.html", caption, spans[shown], trained, shown, tokenizer)
    results = {
        **rows,
        "gain": {
            "nats_per_token": mean,
            "error": error,
            "perplexity_ratio": float(np.exp(-mean)),
            "by_difficulty": deciles,
        },
        "gate": {"everywhere": float(trained.gate.mean())},
        "tokens": int(gain.size),
        "answers": int(answers.sum()),
        "step": step,
        "seed": settings["train"]["seed"] if settings else None,
        "run": str(run),
        "base_run": base_folder,
        "text": config.text,
    }
    if answers.any():
        results["gate"] |= {
            "at_answers": float(trained.gate[answers].mean()),
            "elsewhere": float(trained.gate[~answers].mean()),
        }
    write_results(out / "results.json", results)

    print(f"{run}, step {step}: {gain.size:,} held-out tokens, {answers.sum():,} answers; mean ± standard error")
    print_table(rows)
    print(f"a thought saves {mean:+.4f} ± {error:.4f} nats per token: perplexity x {np.exp(-mean):.4f}")
    print(f"pictures, gains.html and results.json are in {out}")


def write_results(path, results):
    replace_file(path, json.dumps(results, indent=1).encode())


# ----------------------------------------------------------------------------------------------------------------------
# demo: the runs of `make demo`


def demo(config, device):
    """One table of base, LM control, Quiet-STaR and thought lengths; results.json with seconds by phase."""
    out, start = Path(config.out), time.perf_counter()
    names = ["base", "lm_control", "quiet_star"]
    lengths = {
        int(p.name.rsplit("_", 1)[1]): p.name for p in out.glob("thought_len_*") if (p / "checkpoint.pt").exists()
    }
    measured, seconds, settings = {}, {}, {}
    dataset = answers = spans = None
    for name in names + [lengths[m] for m in sorted(lengths)]:
        model, _, settings[name], _ = load_run(out / name, device)
        if dataset is None:
            dataset = open_dataset(settings[name]["train"]["data"], "val")
            spans = spread_spans(dataset.tokens, settings[name]["train"]["span"], config.texts)
            answers = answer_places(spans, dataset.meta)
        measured[name] = measure(model, spans, dataset.meta, device, config.batch_size, name)
        seconds[name] = read_log(out / name)[-1]["seconds"]

    rows = {}
    for name, x in measured.items():
        rows[name] = summarize(*predicted(x), answers)
        if name == "quiet_star":
            rows["quiet_star, not thinking"] = summarize(x.nll_base, x.right_base, answers)
    main_length = settings["quiet_star"]["quiet_star"]["thought_len"]
    sweep = {m: rows[name]["answer_accuracy"] for m, name in lengths.items()}
    sweep[main_length] = rows["quiet_star"]["answer_accuracy"]
    draw_sweep(sweep, rows["base"]["answer_accuracy"], out / "thought_len_sweep.png")
    seconds["evaluation"] = time.perf_counter() - start
    seconds["total"] = sum(seconds.values())
    results = {
        **{name: rows[name] for name in names},
        "quiet_star_not_thinking": rows["quiet_star, not thinking"],
        "thought_len_sweep": {str(m): sweep[m] for m in sorted(sweep)},
        "seconds": seconds,
        "seed": settings["quiet_star"]["train"]["seed"],
        "answers": int(answers.sum()),
        "tokens": int(answers.size),
    }
    write_results(out / "results.json", results)
    print(
        f"\n{answers.sum():,} quiet answers among {answers.size:,} held-out tokens; mean ± standard error; NLL in nats"
    )
    print_table(rows)
    print(f"table: {out / 'results.json'}   picture: {out / 'thought_len_sweep.png'}   {seconds['total']:.0f} s in all")


# ----------------------------------------------------------------------------------------------------------------------
# curve: runs over their training


def curve(config, device):
    """Accuracy at answers (or else nats saved per token) against seconds of training, from what gains left in runs."""
    rows = {}
    for run in map(Path, config.runs.split(",")):
        seconds = {line["step"]: line["seconds"] for line in read_log(run)}
        found = [json.loads(path.read_text("utf-8")) for path in sorted(run.glob("eval_step*/results.json"))]
        if not found:
            raise ValueError(f"{run} was not measured yet: python eval.py gains --run={run}, at several steps")
        name = "answer_accuracy" if found[0]["answers"] else "nats_per_token"
        values = [x["quiet_star"][name] if x["answers"] else x["gain"][name] for x in found]
        steps = [x["step"] for x in found]
        rows[run.name] = [(step, seconds[step], value) for step, value in zip(steps, values, strict=True)]
    print(f"{'':12}{'step':>6}{'seconds':>10}{name:>18}")
    for run, points in rows.items():
        for step, took, value in points:
            print(f"{run:12}{step:>6}{took:>10.1f}{value:>18.4f}")
    out = Path(config.out or Path(config.runs.split(",")[0]).parent)
    out.mkdir(parents=True, exist_ok=True)
    write_results(out / "curve.json", {"columns": ["step", "seconds", name], **rows})
    draw_runs(rows, name, out / "curve.png")
    print(f"table: {out / 'curve.json'}   picture: {out / 'curve.png'}")


COMMANDS = {
    "gains": GainsConfig,
    "gsm8k": QuestionsConfig,
    "commonsense_qa": QuestionsConfig,
    "demo": DemoConfig,
    "curve": CurveConfig,
}


def main():
    arguments = sys.argv[1:]
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "gains"
    if command not in COMMANDS:
        sys.exit(f"eval.py: error: there is no command {command!r}: it is one of {', '.join(COMMANDS)}")
    config, _ = from_cli(__doc__, COMMANDS[command], argv=arguments)
    try:
        if config.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device must be auto, cpu or cuda, not {config.device!r}")
        device = pick_device(config.device)
        if command == "gains":
            gains(config, device)
        elif command in ("demo", "curve"):
            (demo if command == "demo" else curve)(config, device)
        else:
            ask_all(command, config, config.run or last_run(), device)
    except (ValueError, OSError) as error:
        sys.exit(f"eval.py: error: {error}")


if __name__ == "__main__":
    main()

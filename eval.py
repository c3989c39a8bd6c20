"""
What did thinking bring? Base model and Quiet-STaR side by side, token by token.

    python eval.py                       the last run in out/: a table, pictures, results.json
    python eval.py --run=out/mine        the same for a run of yours
    python eval.py demo --out=out/demo   the table of `make demo`

Every token of held-out text is predicted three ways: by the base model that training started from, by the trained
model without thoughts, and by the trained model after one greedy thought per position (as the paper evaluates).
"""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from checkpoint import load_model, load_run, read_config, read_log
from config import from_cli
from data.dataset import open_dataset, replace_file
from quiet_star import QuietSTaR, thought_layout, thought_mask, token_log_prob

COMMANDS = ("gains", "demo")


@dataclass
class EvalConfig:
    run: str = ""  # gains: folder of the run to look at; empty: the last one in out/
    base: str = ""  # gains: folder of the base model's run; empty: the one training started from
    out: str = "out/demo"  # demo: folder whose runs base, lm_control, quiet_star, thought_len_* are compared
    texts: int = 512  # held-out spans to measure on
    batch_size: int = 32  # spans per forward
    device: str = "auto"  # "cpu", "cuda", or "auto": cuda where there is one

    def __post_init__(self):
        if self.texts < 1 or self.batch_size < 1:
            raise ValueError("texts and batch_size must be at least 1")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device must be auto, cpu or cuda, not {self.device!r}")


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
    seconds: float


def held_out_spans(dataset, span, texts):
    """Non-overlapping spans of held-out text, evenly spread: int64 ids (W, span + 1), W <= texts."""
    available = (len(dataset.tokens) - 1) // span
    if available < 1:
        raise ValueError(f"{dataset.path} is shorter than one span of {span} tokens")
    starts = np.linspace(0, available - 1, min(texts, available)).astype(np.int64) * span
    return np.stack([dataset.tokens[s : s + span + 1] for s in starts]).astype(np.int64)


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
def measure(model, spans, meta, device="cpu", batch_size=32, title="measuring"):
    """Predict every token of spans (W, T+1): Measured."""
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

        if thinking:
            thoughts = model.think(tokens)
            h_mixed, gate = model.talk(thoughts)
            mixed = (*judge(h_mixed[:, 0, :, 0]), gate[:, 0, :, 0], thoughts.tokens[:, 0])
            parts.append((*judge(thoughts.h_text), *mixed))
        else:
            parts.append(judge(model(tokens[:, :-1])))
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    nll_base, right_base, nll_mixed, right_mixed, gate, thoughts = columns + [None] * (6 - len(columns))
    return Measured(nll_base, nll_mixed, gate, thoughts, right_base, right_mixed, time.perf_counter() - start)


def summarize(nll, right, answers):
    """One row of the table: means over tokens, with standard errors."""
    row = {"other_nll": mean_and_error(nll[~answers])}
    if answers.any():
        row |= {"answer_accuracy": mean_and_error(right[answers]), "answer_nll": mean_and_error(nll[answers])}
    return {k: v for name, (mean, error) in row.items() for k, v in ((name, mean), (f"{name}_error", error))}


def mean_and_error(x):
    x = np.asarray(x, np.float64)
    return float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else 0.0


def print_table(rows):
    """rows: {name: summary}, printed with one line per name."""
    columns = [c for c in ("answer_accuracy", "answer_nll", "other_nll") if any(c in row for row in rows.values())]
    width = max(len(name) for name in rows)
    print(f"{'':{width}}  " + "  ".join(f"{c:>18}" for c in columns))
    for name, row in rows.items():
        cells = [f"{row[c]:.4f} ± {row[c + '_error']:.4f}" if c in row else "" for c in columns]
        print(f"{name:{width}}  " + "  ".join(f"{cell:>18}" for cell in cells))


# ----------------------------------------------------------------------------------------------------------------------
# pictures


def pyplot():
    import matplotlib  # here, because it takes longer to import than everything else together

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_picture(figure, path):
    """Save a figure as PNG under a temporary name and rename."""
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=130, bbox_inches="tight")
    pyplot().close(figure)
    temporary.replace(path)


def draw_text(words, gains, path, title):
    """Text (a list of words), each token coloured by the nats its thought saved (green) or cost (red)."""
    plt = pyplot()
    lines, x = [[]], 0
    for word, gain in zip(words, gains, strict=True):
        if x + len(word) > 90:
            lines, x = lines + [[]], 0
        lines[-1].append((x, word.replace("\n", "↵"), gain))
        x += len(word)
        if word.endswith("\n"):
            lines, x = lines + [[]], 0
    lines = [line for line in lines if line]
    longest = max(x + len(word) for line in lines for x, word, _ in line)
    columns = max(1, min(96 // (longest + 2), -(-len(lines) // 6)))  # short lines go side by side
    height = -(-len(lines) // columns)
    figure, axes = plt.subplots(figsize=(0.115 * columns * (longest + 2), 0.26 * height + 0.7))
    limit = max(0.1, float(np.quantile(np.abs(gains), 0.98)))
    colours, scale = plt.get_cmap("RdYlGn"), plt.Normalize(-limit, limit)
    for n, line in enumerate(lines):
        for x, word, gain in line:
            left = (n // height) * (longest + 2) + x
            axes.add_patch(plt.Rectangle((left, -(n % height) - 1), len(word), 0.9, color=colours(scale(gain)), lw=0))
            for k, char in enumerate(word):
                axes.text(
                    left + k + 0.5, -(n % height) - 0.55, char, family="monospace", size=9, ha="center", va="center"
                )
    axes.set(xlim=(0, columns * (longest + 2)), ylim=(-height - 0.2, 0.2), title=title)
    axes.axis("off")
    figure.colorbar(plt.cm.ScalarMappable(scale, colours), ax=axes, label="nats the thought saved", pad=0.01)
    save_picture(figure, path)


def draw_difficulty(nll_base, gain, path):
    """Gain against base difficulty: mean gain by decile of the base model's NLL, with 95 % intervals."""
    plt = pyplot()
    deciles = np.array_split(np.argsort(nll_base, axis=None), 10)
    rows = [(float(nll_base.flat[d].mean()), *mean_and_error(gain.flat[d])) for d in deciles]
    figure, axes = plt.subplots(figsize=(6, 3.6))
    axes.bar(range(10), [r[1] for r in rows], yerr=[1.96 * r[2] for r in rows], color="#5b8c5a", capsize=3)
    axes.axhline(0, color="black", lw=0.8)
    axes.set_xticks(range(10), [f"{r[0]:.2f}" for r in rows])
    axes.set(xlabel="tokens by difficulty: mean NLL without a thought, by decile (nats)", ylabel="mean gain (nats)")
    axes.set_title("Which tokens gain from a thought?")
    save_picture(figure, path)
    return [{"nll_base": r[0], "gain": r[1], "gain_error": r[2]} for r in rows]


def draw_mask(path, T=5, steps=3):
    """The attention mask of parallel thoughts: T text tokens, each with a thought of `steps` tokens."""
    plt = pyplot()
    layout = thought_layout(T, steps)
    mask = thought_mask(layout, layout).numpy()
    figure, axes = plt.subplots(figsize=(6, 6))
    axes.imshow(mask, cmap="Greens", vmin=0, vmax=1.4)
    names = [
        f"x{i}" if s < 0 else f"{'start' if s == 0 else f't{s}'} of x{i}"
        for i, _, s in zip(*(x.tolist() for x in layout), strict=True)
    ]
    axes.set_xticks(range(len(names)), names, rotation=90, size=7)
    axes.set_yticks(range(len(names)), names, size=7)
    for edge in range(1, steps + 1):
        axes.axhline(edge * T - 0.5, color="black", lw=0.6)
        axes.axvline(edge * T - 0.5, color="black", lw=0.6)
    axes.set(title="Who (row) may see whom (column)")
    save_picture(figure, path)


def draw_curves(log, path):
    """Loss, reward and gate over the steps of a run."""
    plt = pyplot()
    panels = [
        ("loss (nats per token)", ["nll_base", "nll_mixed", "val_nll_base", "val_nll_mixed"]),
        ("reward (nats)", ["reward", "advantage_abs"]),
        ("gate", ["gate", "val_gate"]),
    ]
    panels = [(title, [n for n in names if any(n in line for line in log)]) for title, names in panels]
    panels = [panel for panel in panels if panel[1]]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False)
    for ax, (title, names) in zip(axes[0], panels, strict=True):
        for name in names:
            points = [(line["step"], line[name]) for line in log if name in line]
            ax.plot(*zip(*points, strict=True), marker="o" if name.startswith("val_") else "", label=name, lw=1.2)
        ax.set(title=title, xlabel="step")
        ax.legend(fontsize=7)
    figure.tight_layout()
    save_picture(figure, path)


# ----------------------------------------------------------------------------------------------------------------------
# gains: one run


def last_run():
    """The folder in out/ whose thinking model was saved last."""
    found = sorted(Path("out").glob("**/checkpoint.pt"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found:
        if read_config(path.parent)["train"]["objective"] == "quiet_star":
            return path.parent
    raise ValueError("no thinking model in out/ yet: train one (python train.py), or name one with --run")


def gains(config, device):
    """Measure one run against its base, print the table, draw the pictures, write results.json."""
    run = Path(config.run) if config.run else last_run()
    model, tokenizer, settings, step = load_run(run, device)
    if not isinstance(model, QuietSTaR):
        raise ValueError(f"{run} is a plain language model: name a thinking one with --run")
    dataset = open_dataset(settings["train"]["data"], "val")
    if dataset.meta["tokenizer"] != settings["tokenizer"]:
        raise ValueError(f"{settings['train']['data']} was made with another tokenizer than {run}")
    spans = held_out_spans(dataset, settings["train"]["span"], config.texts)
    answers = answer_places(spans, dataset.meta)

    trained = measure(model, spans, dataset.meta, device, config.batch_size, "thinking")
    rows, base_folder = {}, config.base or settings["train"]["init_from"]
    if base_folder:
        base_model, *_ = load_model(base_folder, device)
        base = measure(base_model, spans, dataset.meta, device, config.batch_size, "base")
        rows["base"] = summarize(base.nll_base, base.right_base, answers)
    rows["without_thoughts"] = summarize(trained.nll_base, trained.right_base, answers)
    rows["quiet_star"] = summarize(trained.nll_mixed, trained.right_mixed, answers)

    gain = trained.nll_base - trained.nll_mixed
    mean, error = mean_and_error(gain)
    out = run / f"eval_step{step:06d}"
    out.mkdir(exist_ok=True)
    W = next(w for w in range(len(spans)) if not answers.any() or answers[w].any())
    shown = slice(W, W + max(1, 640 // spans.shape[1]))
    words = [tokenizer.decode([t]) for t in spans[shown, 1:].flatten().tolist()]
    draw_text(
        words, gain[shown].flatten(), out / "gains_text.png", "Held-out text: what each token gained from its thought"
    )
    deciles = draw_difficulty(trained.nll_base, gain, out / "gains_by_difficulty.png")
    draw_mask(out / "mask.png")
    draw_curves(read_log(run), out / "curves.png")
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
        "seed": settings["train"]["seed"],
        "run": str(run),
        "base_run": base_folder,
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
    print(f"pictures and results.json are in {out}")


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
            spans = held_out_spans(dataset, settings[name]["train"]["span"], config.texts)
            answers = answer_places(spans, dataset.meta)
        measured[name] = measure(model, spans, dataset.meta, device, config.batch_size, name)
        seconds[name] = read_log(out / name)[-1]["seconds"]

    rows = {}
    for name, x in measured.items():
        thinks = x.nll_mixed is not None
        rows[name] = summarize(*(x.nll_mixed, x.right_mixed) if thinks else (x.nll_base, x.right_base), answers)
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


def draw_sweep(sweep, base_accuracy, path):
    """Accuracy on quiet answers by thought length."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(5, 3.2))
    axes.plot(sorted(sweep), [sweep[m] for m in sorted(sweep)], marker="o", color="#5b8c5a", label="Quiet-STaR")
    axes.axhline(base_accuracy, ls="--", color="gray", label="base")
    axes.set(
        xlabel="thought_len",
        ylabel="accuracy on quiet answers",
        ylim=(0, 1.02),
        title="Longer thoughts, better answers",
    )
    axes.set_xticks(sorted(sweep))
    axes.legend()
    save_picture(figure, path)


def main():
    arguments = sys.argv[1:]
    command = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "gains"
    if command not in COMMANDS:
        sys.exit(f"eval.py: error: there is no command {command!r}: it is one of {', '.join(COMMANDS)}")
    config, _ = from_cli(__doc__, EvalConfig, argv=arguments)
    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        {"gains": gains, "demo": demo}[command](config, device)
    except (ValueError, OSError) as error:
        sys.exit(f"eval.py: error: {error}")


if __name__ == "__main__":
    main()

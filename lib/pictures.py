"""
Pictures of what eval.py measures. Each is drawn from numbers that a JSON file beside it holds as well.
"""

import warnings

import numpy as np
import torch

from lib.tables import mean_and_error
from quiet_star import thought_mask


def pyplot():
    import matplotlib  # here, because it takes longer to import than everything else together

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save_picture(figure, path):
    """Save a figure as PNG under a temporary name and rename."""
    temporary = path.with_suffix(".tmp.png")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # of a script that the font lacks: drawn as boxes
        figure.savefig(temporary, dpi=130, bbox_inches="tight")
    pyplot().close(figure)
    temporary.replace(path)


def draw_text(words, gains, path, title):
    """Text, each token coloured by the nats its thought saved (green) or cost (red). words: a list; None: new line."""
    plt = pyplot()
    lines, x = [[]], 0
    for word, gain in zip(words, gains, strict=True):
        if word is None or x + len(word) > 90:
            lines, x = lines + [[]], 0
        if word is None:
            continue
        lines[-1].append((x, word.replace("\n", "↵"), gain))
        x += len(word)
        if word.endswith("\n"):
            lines, x = lines + [[]], 0
    lines = [line for line in lines if line]
    longest = max(x + len(word) for line in lines for x, word, _ in line)
    columns = max(1, min(96 // (longest + 2), -(-len(lines) // 6)))  # short lines go side by side
    height = -(-len(lines) // columns)
    figure, axes = plt.subplots(figsize=(0.115 * columns * (longest + 2), 0.26 * height + 0.7))
    limit = max(0.1, float(np.nanquantile(np.abs(gains), 0.98)))
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


def thought_layout(T, steps):
    """The triples (position, thought, step), each (T + steps * T,), of a text whose every position has one thought:
    T text tokens, then T tokens of step 0, T of step 1, ... (the order of the picture in thought_mask)."""
    step = torch.arange(-1, steps).repeat_interleave(T)
    thought = step.clamp(max=0)  # -1 for the text; the one thought is number 0
    return torch.arange(T).repeat(steps + 1), thought, step


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


def draw_scores(rows, title, path):
    """Scores of several models, {row: {metric: (mean, standard error)}}, as bars with 95 % intervals."""
    plt = pyplot()
    metrics = list(next(iter(rows.values())))
    figure, axes = plt.subplots(figsize=(1.6 + 1.5 * len(metrics), 3.2))
    width = 0.8 / len(rows)
    for r, (row, by) in enumerate(rows.items()):
        places = [m + (r - (len(rows) - 1) / 2) * width for m in range(len(metrics))]
        heights, errors = ([100 * by[m][k] for m in metrics] for k in (0, 1))
        axes.bar(places, heights, 0.9 * width, yerr=[1.96 * x for x in errors], capsize=2, label=row)
    axes.set_xticks(range(len(metrics)), metrics)
    axes.set(ylabel="per cent", title=title)
    axes.legend(fontsize=7)
    save_picture(figure, path)


def draw_over_training(rows, name, path):
    """Settings over training, {setting: (steps, values (seeds, steps))}: mean over seeds, from least to most shaded."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 4))
    for number, (setting, (steps, values)) in enumerate(rows.items()):
        (line,) = axes.plot(steps, values.mean(0), label=setting, lw=2.4 if number == 0 else 1.2)
        axes.fill_between(steps, values.min(0), values.max(0), alpha=0.15, color=line.get_color(), lw=0)
    axes.set(xlabel="step", ylabel=name, ylim=(0, 1.02))
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    save_picture(figure, path)


def draw_bars(rows, column, title, path):
    """Rows {name: {column: mean and spread}} as bars, their spread over seeds as a line."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6.4, 0.6 + 0.3 * len(rows)))
    values = [row[column] for row in rows.values()]
    names = [name.replace("_", " ") for name in rows]
    axes.barh(names, [x["mean"] for x in values], xerr=[x["spread"] for x in values], color="#5b8c5a", capsize=3)
    for y, x in enumerate(values):
        axes.text(max(x["mean"] + x["spread"], 0) + 0.01, y, f"{x['mean']:.3f}", va="center", size=8)
    axes.invert_yaxis()
    axes.set(xlabel=title, xlim=(0, 1.12))
    save_picture(figure, path)


def draw_lines(lines, labels, path, level=None):
    """Lines {name: {x: mean and spread, or a number}} between labels (x, y), and a level (name, y) to compare with."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 3.6))
    for name, points in lines.items():
        points = {x: point for x, point in points.items() if point}
        x = [str(key).replace("_", " ") if isinstance(key, str) else key for key in points]
        points = [y if isinstance(y, dict) else {"mean": y, "spread": 0.0} for y in points.values()]
        means, spreads = ([point[what] for point in points] for what in ("mean", "spread"))
        axes.errorbar(x, means, yerr=spreads, marker="o", ms=3, capsize=3, label=name)
        if x and isinstance(x[0], str):
            axes.tick_params(axis="x", rotation=30)
    if level:
        axes.axhline(level[1], ls="--", color="gray", label=level[0])
    axes.set(xlabel=labels[0], ylabel=labels[1])
    if axes.get_ylim()[1] > 0.2:  # shares, not nats
        axes.set_ylim(min(0, axes.get_ylim()[0]), 1.05)
    axes.legend(fontsize=8)
    save_picture(figure, path)


def draw_who(found, edges, kinds, path):
    """Gains by difficulty of own and others' thoughts, the gate's histogram, and what answers make of corruption."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(14, 3.6))
    for number, (name, title) in enumerate((("own", "its own thought"), ("others", "another position's"))):
        gains = found["gain_by_decile"][name]
        places = [x + (number - 0.5) * 0.4 for x in range(10)]
        axes[0].bar(places, [x["mean"] for x in gains], 0.4, yerr=[x["spread"] for x in gains], label=title)
    axes[0].set_xticks(range(10), [f"{x['mean']:.2f}" for x in found["base_nll_by_decile"]], size=7)
    axes[0].set(xlabel="tokens by difficulty: mean NLL of the base model, by decile (nats)", ylabel="mean gain (nats)")
    axes[0].axhline(0, color="black", lw=0.8)
    for name, shares in found["gate_histogram"].items():
        axes[1].stairs([x["mean"] for x in shares], edges, label=name.replace("_", " "), fill=True, alpha=0.5)
    axes[1].set(xlabel="gate", ylabel="share of positions")
    for number, kind in enumerate(kinds):
        values = [row[kind] for row in found["corrupted"].values()]
        places = [x + (number - 1) * 0.27 for x in range(len(values))]
        heights, errors = ([x[what] for x in values] for what in ("mean", "spread"))
        axes[2].bar(places, heights, 0.27, yerr=errors, label=kind.replace("_", " "))
    axes[2].set_xticks(range(len(found["corrupted"])), list(found["corrupted"]))
    axes[2].set(xlabel="digit of the thought made another", ylabel="share of answers", ylim=(0, 1.4))
    for ax in axes:
        ax.legend(fontsize=7)
    figure.tight_layout()
    save_picture(figure, path)

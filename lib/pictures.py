"""
Pictures of what eval.py and the studies measure. Each is drawn from numbers that a JSON file beside it holds as well.
"""

import warnings
from contextlib import contextmanager

import numpy as np

from lib.files import write_whole

GREEN = "#5b8c5a"
CENTRED = dict(family="monospace", size=9, ha="center", va="center")


def pyplot():
    import matplotlib  # here, because it takes longer to import than everything else together

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams["text.parse_math"] = False  # a folder may be called $x$
    return pyplot


@contextmanager
def picture(path, width, height, panels=1, title=None, **legend):
    """The axes of a figure, one for each panel, to draw on. Then they get a legend of what has a label, and the figure
    is saved as PNG."""
    figure, axes = pyplot().subplots(1, panels, figsize=(width, height), squeeze=False)
    yield axes[0]
    figure.suptitle(title, y=1.02) if title else None
    for ax in axes[0]:
        if ax.get_legend_handles_labels()[0]:
            ax.legend(**{"fontsize": 7, **legend})
    if panels > 1:
        figure.tight_layout()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # of a script that the font lacks: drawn as boxes
        write_whole(
            path, lambda file: figure.savefig(file, format="png", dpi=130, bbox_inches="tight")
        )
    pyplot().close(figure)


def bars(axes, groups, rows, size=None, **how):
    """A group of bars at each of the names in groups, of rows {label: a height and its error for each group}."""
    width = 0.8 / len(rows)
    for number, (label, points) in enumerate(rows.items()):
        places = [group + (number - (len(rows) - 1) / 2) * width for group in range(len(groups))]
        heights, errors = zip(*points, strict=True)
        axes.bar(places, heights, 0.9 * width, yerr=errors, capsize=2, label=label, **how)
    axes.set_xticks(range(len(groups)), groups, size=size)


def mean_and_error(x):
    """Mean of numbers, an array of any shape, and its standard error were they independent."""
    x = np.asarray(x, np.float64).flatten()
    return float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else 0.0


def mean_and_spread(points):
    """Points, each a mean and its spread over seeds, as the studies' tables hold them: a list of pairs."""
    return [(x["mean"], x["spread"]) for x in points]


def draw_text(words, gains, boxed, path, title):
    """Text, each token coloured by the nats its thought saved (green) or cost (purple). words: a list; None: new line.
    boxed: which of them get a frame.
    The palette is white in its middle, and read also by those who see no difference between red and green."""
    plt = pyplot()
    lines, full = [], 91
    x = full
    for word, gain, framed in zip(words, gains, boxed, strict=True):
        if word is None:
            x = full
            continue
        if x + len(word) >= full:
            lines, x = lines + [[]], 0
        lines[-1].append((x, word.replace("\n", "↵"), gain, framed))
        x = full if word.endswith("\n") else x + len(word)
    longest = max(x + len(word) for line in lines for x, word, *_ in line)
    columns = max(1, min(96 // (longest + 2), -(-len(lines) // 6)))  # short lines go side by side
    height = -(-len(lines) // columns)
    limit = max(0.1, float(np.nanquantile(np.abs(gains), 0.98)))
    colours, scale = plt.get_cmap("PRGn"), plt.Normalize(-limit, limit)
    with picture(path, 0.115 * columns * (longest + 2), 0.26 * height + 0.7) as (axes,):
        for n, line in enumerate(lines):
            for x, word, gain, framed in line:
                left, bottom = (n // height) * (longest + 2) + x, -(n % height) - 1
                cell = colours(scale(gain))
                frame = dict(ec="black", lw=1.5, zorder=2) if framed else dict(lw=0)
                axes.add_patch(plt.Rectangle((left, bottom), len(word), 0.9, fc=cell, **frame))
                how = {
                    "color": "white" if np.dot(cell[:3], (0.299, 0.587, 0.114)) < 0.5 else "black",
                    **CENTRED,
                }
                for k, char in enumerate(word, start=left):
                    axes.text(k + 0.5, bottom + 0.45, char, **how)
        axes.set(xlim=(0, columns * (longest + 2)), ylim=(-height - 0.2, 0.2), title=title)
        axes.axis("off")
        colours = plt.cm.ScalarMappable(scale, colours)
        axes.figure.colorbar(colours, ax=axes, label="nats the thought saved", pad=0.01)


def draw_difficulty(nll_base, gain, path):
    """Gain against base difficulty: mean gain by decile of the base model's NLL, with 95 % intervals."""
    deciles = np.array_split(np.argsort(nll_base, axis=None), 10)
    rows = [(float(nll_base.flat[d].mean()), *mean_and_error(gain.flat[d])) for d in deciles]
    with picture(path, 6, 3.6) as (axes,):
        bars(
            axes,
            [f"{r[0]:.2f}" for r in rows],
            {"": [(r[1], 1.96 * r[2]) for r in rows]},
            color=GREEN,
        )
        axes.axhline(0, color="black", lw=0.8)
        axes.set(
            xlabel="tokens by difficulty: mean NLL without a thought, by decile (nats)",
            ylabel="mean gain (nats)",
        )
        axes.set_title("Which tokens gain from a thought?")
    return [{"nll_base": r[0], "gain": r[1], "gain_error": r[2]} for r in rows]


def draw_curves(log, path):
    """Loss, reward and gate over the steps of a run, if its log has them."""
    panels = {
        "loss (nats per token)": ["nll_base", "nll_mixed", "val_nll_base", "val_nll_mixed"],
        "reward (nats)": ["reward", "advantage_abs"],
        "gate": ["gate", "val_gate"],
    }
    logged = set().union(*log)
    panels = {title: names for title, names in panels.items() if logged & set(names)}
    if not panels:
        return
    with picture(path, 4.2 * len(panels), 3.2, len(panels)) as axes:
        for ax, (title, names) in zip(axes, panels.items(), strict=True):
            for name in filter(logged.__contains__, names):
                points = [(line["step"], line[name]) for line in log if name in line]
                ax.plot(
                    *zip(*points, strict=True),
                    marker="o" if name.startswith("val_") else "",
                    label=name,
                    lw=1.2,
                )
            ax.set(title=title, xlabel="step")


def draw_scores(rows, title, path):
    """Scores of several models, {row: {metric: (mean, standard error)}}, as bars with 95 % intervals."""
    metrics = list(next(iter(rows.values())))
    per_cent = {
        row: [(100 * by[m][0], 1.96 * 100 * by[m][1]) for m in metrics] for row, by in rows.items()
    }
    with picture(path, 1.6 + 1.5 * len(metrics), 3.2) as (axes,):
        bars(axes, metrics, per_cent)
        axes.set(ylabel="per cent", title=title)


def draw_over_training(rows, name, path, title):
    """Settings over training, {setting: (steps, values (seeds, steps))}: mean over seeds, from least to most shaded."""
    with picture(path, 6.4, 4, title=title, loc="center left", bbox_to_anchor=(1, 0.5)) as (axes,):
        for number, (setting, (steps, values)) in enumerate(rows.items()):
            (line,) = axes.plot(
                steps, values.mean(0), label=setting, lw=2.4 if number == 0 else 1.2
            )
            axes.fill_between(
                steps, values.min(0), values.max(0), alpha=0.15, color=line.get_color(), lw=0
            )
        axes.set(xlabel="step", ylabel=name, ylim=(0, 1.02))


def draw_bars(rows, column, label, path, title):
    """Rows {name: {column: mean and spread}} as bars, their spread over seeds as a line."""
    names = [name.replace("_", " ") for name in rows]
    means, spreads = zip(*mean_and_spread(row[column] for row in rows.values()), strict=True)
    with picture(path, 6.4, 0.6 + 0.3 * len(rows), title=title) as (axes,):
        axes.barh(names, means, xerr=spreads, color=GREEN, capsize=3)
        for y, (mean, spread) in enumerate(zip(means, spreads, strict=True)):
            axes.text(max(mean + spread, 0) + 0.01, y, f"{mean:.3f}", va="center", size=8)
        axes.invert_yaxis()
        axes.set(xlabel=f"{label} (mean over seeds; line: their spread)", xlim=(0, 1.12))


def draw_lines(lines, labels, path, title, level=None):
    """Lines {name: {x: mean and spread, or a number}} of shares between labels (x, y), and a level (name, y) to compare
    with."""
    with picture(path, 6, 3.6, title=title, fontsize=8) as (axes,):
        for name, points in lines.items():
            points = {x: y for x, y in points.items() if y is not None}
            means = [y["mean"] if isinstance(y, dict) else y for y in points.values()]
            spreads = [y["spread"] if isinstance(y, dict) else np.nan for y in points.values()]
            axes.errorbar(
                list(points), means, yerr=spreads, marker="o", ms=3, capsize=3, label=name
            )
        if any(isinstance(x, str) for x in points):
            axes.tick_params(axis="x", rotation=30)
        if level:
            axes.axhline(level[1], ls="--", color="gray", label=level[0])
        axes.set(xlabel=labels[0], ylabel=labels[1], ylim=(min(0, axes.get_ylim()[0]), 1.05))


def draw_who(found, edges, kinds, path):
    """Gains by difficulty of own and others' thoughts, the gate's histogram, and what answers make of corruption."""
    deciles, corrupted = (
        [f"{x['mean']:.2f}" for x in found["base_nll_by_decile"]],
        found["corrupted"],
    )
    titles = {"own": "its own thought", "others": "another position's"}
    gains = {
        title: mean_and_spread(found["gain_by_decile"][name]) for name, title in titles.items()
    }
    answers = {
        kind.replace("_", " "): mean_and_spread(row[kind] for row in corrupted.values())
        for kind in kinds
    }
    title = "Who gains from a thought; how much the thought counts; what an answer does when its thought is changed"
    with picture(path, 14, 3.6, 3, title) as (by_difficulty, gate, of_corruption):
        bars(by_difficulty, deciles, gains, size=7)
        by_difficulty.axhline(0, color="black", lw=0.8)
        label = "tokens by difficulty: mean NLL of the base model, by decile (nats)"
        by_difficulty.set(xlabel=label, ylabel="mean gain (nats)")
        for name, shares in found["gate_histogram"].items():
            gate.stairs(
                [x["mean"] for x in shares],
                edges,
                label=name.replace("_", " "),
                fill=True,
                alpha=0.5,
            )
        gate.set(
            xlabel="gate: how much of the thought goes into the prediction",
            ylabel="share of positions",
        )
        bars(of_corruption, list(corrupted), answers)
        of_corruption.set(
            xlabel="digit of the thought made another", ylabel="share of answers", ylim=(0, 1.4)
        )

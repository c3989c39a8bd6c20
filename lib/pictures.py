"""Tables and pictures of what eval.py and the studies measure."""

import os
import warnings
from contextlib import contextmanager

import numpy as np

from lib.files import write_whole

# What a thought saved and what it cost: colours that can be told apart without red-green sight, and
# are light enough for black letters. FULL nats or more have the full colour.
SAVED, COST, FULL = "#5aae61", "#9970ab", 1.0


@contextmanager
def picture(path, width, height, title=""):
    """The axes of a figure of so many inches, to draw on. It is saved as PNG, with a legend of what
    has a label. What the user has set for matplotlib does not count."""
    os.environ["MPLBACKEND"] = "agg"  # a notebook's own is no backend of other programs
    import matplotlib.figure  # here, because it takes long to import
    import matplotlib.style

    # not the user's matplotlibrc, which may want TeX; and a folder may be called $x$
    styles = ["tableau-colorblind10", {"text.parse_math": False}]
    with matplotlib.style.context(styles, after_reset=True), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the font draws a box instead
        figure = matplotlib.figure.Figure((width, height), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title)
        yield axes
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7)
        how = {"format": "png", "dpi": 130, "bbox_inches": "tight"}
        write_whole(path, lambda file: figure.savefig(file, **how))


def mean_and_error(x):
    """The mean of an array, and as `spread` its standard error if the numbers are independent."""
    x = np.asarray(x, np.float64).flatten()
    error = float(x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else 0.0
    return {"mean": float(x.mean()), "spread": error}


def print_rows(title, rows, digits=3):
    """A table of rows {name: {column: mean and spread}}; None, or no such column, is left empty."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    width = max(map(len, rows))
    print(f"\n{title}\n\n{'':{width}}" + "".join(f"{column:>20}" for column in columns))
    for name, row in rows.items():
        found = [row.get(column) for column in columns]
        cells = [f"{x['mean']:.{digits}f} ± {x['spread']:.{digits}f}" if x else "" for x in found]
        print(f"{name:{width}}" + "".join(f"{x:>20}" for x in cells))


def draw_text(words, gains, path, width=96):
    """A text, each token coloured by the nats that its thought saved. words: of each token, a list.
    Letters of a monospace font stand in cells of 10 pixels: so a line is one piece of text, and the
    colours behind all lines are one image."""
    letters = []
    for word, gain in zip(words, gains, strict=True):
        letters += [(letter, gain) for letter in word.replace("\n", "↵")]
        if word.endswith("\n"):  # go on at the next sixth of the line
            letters += [(" ", 0.0)] * (-len(letters) % 16)
    letters += [(" ", 0.0)] * (-len(letters) % width)
    colours = np.array([gain for _, gain in letters]).reshape(-1, width)
    with picture(path, width * 10 / 130, len(colours) * 0.2) as axes:
        for row in range(len(colours)):
            line = "".join(letter for letter, _ in letters[row * width : (row + 1) * width])
            axes.text(-0.5, row + 0.25, line, family="monospace", size=9.2)
        full = FULL / 0.6  # PRGn has COST and SAVED at 0.6 of its way, and goes on to darker ones
        axes.imshow(colours.clip(-FULL, FULL), "PRGn", vmin=-full, vmax=full, aspect="auto")
        axes.set_position((0, 0, 1, 1))  # as wide as the cells together
        axes.axis("off")
        axes.set_title("green: what its thought saved; purple: what it cost (full colour: 1 nat)")


def draw_curves(log, path):
    """What a run has logged over its steps: losses and reward in nats, and the gate."""
    with picture(path, 8, 4, "training") as axes:
        for name in ("nll_base", "nll_mixed", "val_nll_base", "val_nll_mixed", "reward", "gate"):
            points = {line["step"]: line[name] for line in log if name in line}
            axes.plot(list(points), list(points.values()), ".-", ms=3, lw=1, label=name)
        axes.set_xlabel("step")


def draw_bars(rows, column, label, path, title, mark=None):
    """A column of rows {name: {column: mean and spread}} as bars, the spread as a line. mark: a
    value that a dashed line across them shows."""
    with picture(path, 6.4, 0.6 + 0.3 * len(rows), title) as axes:
        for name, row in rows.items():
            axes.barh(name, row[column]["mean"], xerr=row[column]["spread"], color=SAVED)
        if mark is not None:
            axes.axvline(mark, color="black", ls="--", lw=1)
        axes.invert_yaxis()
        axes.set_xlabel(label)


def draw_lines(lines, labels, path, title):
    """Lines {name: {x: mean and spread over seeds}}; labels of x and y."""
    with picture(path, 6, 3.6, title) as axes:
        for name, points in lines.items():
            mean, spread = ([point[x] for point in points.values()] for x in ("mean", "spread"))
            axes.errorbar(list(points), mean, spread, marker="o", ms=3, capsize=3, label=name)
        axes.set(xlabel=labels[0], ylabel=labels[1])

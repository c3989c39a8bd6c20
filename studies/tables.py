"""
What studies measure of their runs, and the tables they make of it. Scores of a run are kept beside it, and not measured
again until the run goes on.
"""

import statistics
from functools import partial

from tqdm import tqdm

from data.dataset import open_dataset
from eval import held_out_spans, measure, predicted, summarize
from lib.checkpoint import read_checkpoint
from lib.files import compute_once, read_json, write_json
from lib.pictures import draw_bars
from lib.runs import load_run
from studies.runs import PLAIN


def remembered(folder, name, make, **about):
    """make() of a run, from folder/name.json where it was made before: at the same step and about the same."""
    return compute_once(folder / f"{name}.json", {"step": read_checkpoint(folder)["step"], **about}, make)


def held_out(config, data=PLAIN):
    """Held-out spans (W, T+1), where they have answers (W, T), the dataset's meta."""
    dataset = open_dataset(data, "val")
    return *held_out_spans(dataset, 64, config.texts), dataset.meta


SCORES = ("answer_accuracy", "answer_nll", "other_nll")


def scores_of(config, folder, text, name="scores", settings=None, **how):
    """Scores of a row of runs, over seeds, on a text that `held_out` gave: their models with other settings, measured
    as how says (a function in it is asked for each model); of answers after a thought, if they think, and without."""
    spans, answers, meta = text

    def make(run):
        model = load_run(run, "cpu")[0]
        model = model.with_settings(**settings) if settings else model
        found = measure(
            model, spans, meta, **{k: x(model) if callable(x) else x for k, x in how.items()}
        )
        row, without = summarize(*predicted(found), answers), found.right_base[answers]
        return {
            **{name: row[name] for name in SCORES},
            "accuracy_without_thoughts": float(without.mean()),
        }

    runs = [folder / str(seed) for seed in config.all_seeds()]
    return over_seeds([remembered(run, name, partial(make, run), texts=len(spans)) for run in runs])


def over_seeds(values):
    """Mean and spread (standard deviation over seeds) of some numbers, or of each number in dicts or lists of them.
    None (a seed had no such case) is left out."""
    if isinstance(values[0], dict):
        return {key: over_seeds([x[key] for x in values]) for key in values[0]}
    if isinstance(values[0], list):
        return [over_seeds(list(column)) for column in zip(*values, strict=True)]
    values = [x for x in values if x is not None]
    if not values:
        return None
    return {
        "mean": statistics.mean(values),
        "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
    }


def print_rows(title, rows, columns):
    """A table of rows {name: {column: mean and spread, or a number}}."""
    width, widths = max(map(len, rows)), [max(17, len(column) + 2) for column in columns]
    print(
        f"\n{title}\n\n{'':{width}}"
        + "".join(f"{c:>{w}}" for c, w in zip(columns, widths, strict=True))
    )
    for name, row in rows.items():
        cells = ["" if row.get(column) is None else row[column] for column in columns]
        cells = [
            f"{x['mean']:.3f} ± {x['spread']:.3f}" if isinstance(x, dict) else x for x in cells
        ]
        print(
            f"{name:{width}}"
            + "".join(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
        )


def keep_results(out, name, results):
    """Put one command's results into results.json, beside those of the others."""
    path = out / "results.json"
    old = read_json(path) if path.exists() else {}
    write_json(path, {**old, name: results})


def measure_rows(config, text, rows):
    """Scores of rows {row: (folder of its runs, how `scores_of` measures them)}."""
    progress = tqdm(rows.items(), desc="measuring", disable=None)
    return {row: scores_of(config, folder, text, **how) for row, (folder, how) in progress}


def table_of_runs(config, out, name, title, text, rows):
    """A study's table, results and picture of its rows: see `measure_rows`."""
    rows = measure_rows(config, text, rows)
    print_rows(f"{title}; mean and spread over seeds {config.seeds}; NLL in nats", rows, SCORES)
    keep_results(out, name, rows)
    draw_bars(
        rows, "answer_accuracy", "share of answers that are right", out / f"{name}.png", title
    )

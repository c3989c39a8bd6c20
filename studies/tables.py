"""What studies measure of their runs, and the tables they make of it."""

import statistics

from tqdm import tqdm

from data.dataset import open_dataset
from eval import held_out_spans, measure, predicted, summarize
from lib.checkpoint import read_checkpoint
from lib.files import compute_once
from lib.pictures import draw_bars
from lib.runs import load_run
from studies.runs import PLAIN

SCORES = ("answer_accuracy", "answer_nll", "other_nll")


def remembered(folder, name, make, **about):
    """make() of a run, or what it made before at the same step about the same, from a file."""
    return compute_once(
        folder / f"{name}.json", {"step": read_checkpoint(folder)["step"], **about}, make
    )


def held_out(config, data=PLAIN):
    """Held-out spans (W, T+1), where they have answers (W, T), the dataset's meta."""
    dataset = open_dataset(data, "val")
    return *held_out_spans(dataset, 64, config.texts), dataset.meta


def scores_of(run, text, **how):
    """SCORES of a run on a text that `held_out` gave. how: arguments of eval.measure; one may be a
    function of the model."""
    spans, answers, meta = text
    model = load_run(run)[0]
    how = {key: x(model) if callable(x) else x for key, x in how.items()}
    row = summarize(*predicted(measure(model, spans, meta, **how)), answers)
    return {name: row[name] for name in SCORES}


def measure_rows(config, title, rows, measure_run, path):
    """What measure_run(run, **arguments) says of rows {name: (folder of its runs, arguments)}, over
    seeds: {name: {column: mean and spread}}. It is printed, and its first column drawn."""
    found = {}
    for name, (folder, how) in tqdm(rows.items(), "measuring", disable=None):
        runs = [folder / str(seed) for seed in config.all_seeds()]
        found[name] = over_seeds([measure_run(run, **how) for run in runs])
    columns = list(found[name])
    print_rows(title, found, columns)
    draw_bars(found, columns[0], columns[0].replace("_", " "), path, title)
    return found


def over_seeds(values):
    """Mean and spread (standard deviation) over seeds of numbers, or of each in dicts or lists.
    None, where a seed had no such case, is left out."""
    if isinstance(values[0], dict):
        return {key: over_seeds([x[key] for x in values]) for key in values[0]}
    if isinstance(values[0], list):
        return [over_seeds(list(column)) for column in zip(*values, strict=True)]
    if not (values := [x for x in values if x is not None]):
        return None
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "spread": spread}


def print_rows(title, rows, columns):
    """A table of rows {name: {column: mean and spread, or a number}}."""

    def cell(x):
        return f"{x['mean']:.3f} ± {x['spread']:.3f}" if isinstance(x, dict) else x

    width = max(map(len, rows))
    print(f"\n{title}\n\n{'':{width}}" + "".join(f"{column:>20}" for column in columns))
    for name, row in rows.items():
        cells = ["" if row.get(column) is None else cell(row[column]) for column in columns]
        print(f"{name:{width}}" + "".join(f"{x:>20}" for x in cells))

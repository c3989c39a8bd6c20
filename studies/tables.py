"""What studies measure of their runs, and the tables they make of it."""

import statistics
from contextlib import suppress

import numpy as np
from tqdm import tqdm

from data.dataset import open_dataset
from eval import held_out_spans, measure, predicted, summarize
from lib.checkpoint import read_checkpoint
from lib.files import read_json, write_json
from lib.pictures import draw_bars, print_rows
from lib.runs import load_run
from studies.runs import TEXTS

SCORES = ("answer_accuracy", "answer_nll", "other_nll")


def remembered(folder, name, make, **about):
    """make() of a run, plain values, or what it made before at the same step about the same: a file
    keeps that, so that a study that was stopped does not compute it again."""
    about["step"], old = read_checkpoint(folder)["step"], {}
    path = folder / f"{name}.json"
    with suppress(ValueError):
        old = read_json(path, {"value": object})
    if old.get("about") != about:
        old = {"about": about, "value": make()}
        write_json(path, old)
    return old["value"]


def held_out(config, text):
    """Of one of TEXTS: held-out spans (W, T+1), where they have answers (W, T), the data's meta."""
    dataset = open_dataset(TEXTS[text][0], "val")
    return *held_out_spans(dataset, 64, config.texts), dataset.meta


def questions_in(spans, answers, tokenizer):
    """(w, t, "3849") of each answer (W, T) in spans (W, T+1) of sums, such as 3849=4."""
    for w, t in np.argwhere(answers):
        yield w, t, tokenizer.decode(spans[w, :t].tolist()).split("\n")[-1]


def scores_of(run, text, **how):
    """SCORES of a run on a text that `held_out` gave. how: arguments of eval.measure; one may be a
    function of the model."""
    spans, answers, meta = text
    model = load_run(run)[0]
    how = {key: x(model) if callable(x) else x for key, x in how.items()}
    row = summarize(*predicted(measure(model, spans, meta, **how)), answers)
    return {name: row[name]["mean"] for name in SCORES}


def measure_rows(config, title, folders, path, measure_run, how=None):
    """What measure_run(run, **how[name]) says of rows {name: folder of its runs}, over seeds:
    {name: {column: mean and spread}}. It is printed, and its first column drawn."""
    found = {}
    for name, folder in tqdm(folders.items(), "measuring", disable=None):
        runs = [folder / str(seed) for seed in config.all_seeds()]
        found[name] = over_seeds([measure_run(run, **(how or {}).get(name, {})) for run in runs])
    print_rows(title, found)
    column = next(iter(found[name]))
    draw_bars(found, column, column.replace("_", " "), path, title)
    return found


def share(values):
    """The share of true values; None if there are no values."""
    values = list(values)
    return float(sum(values)) / len(values) if values else None


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

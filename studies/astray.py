"""
A thought can go astray, and a model can notice it while it thinks. Most thoughts of a model that read idle asides and
learned without REINFORCE are idle. A length that is chosen beforehand cannot depend on what the
thought will say. An online stop (studies/length.py) breaks idle thoughts off, and goes on with the others.

    python -m studies.astray
"""

from functools import partial

import numpy as np

from lib.pictures import picture
from lib.runs import load_run
from studies.chatter import train_chatter
from studies.length import (
    compare,
    draw_tokens,
    expected_online,
    fit_online,
    measure_lengths,
    text_of,
    ways_to_think,
)
from studies.runs import CHATTER, in_parallel, max_steps, run_studies
from studies.tables import keep_results, over_seeds, print_rows, remembered

COLUMNS = "tokens", "accuracy", "after_a_letter", "after_a_digit"


def spoken(lengths, some):
    """Mean number of tokens of the thoughts at `some` places, where they think."""
    some = some & (lengths >= 0)
    return float(lengths[some].mean()) if some.any() else None


def measured_seed(run, texts):
    """The ways to think, of one run's model, kept beside it."""
    return remembered(run, "astray", partial(measure_seed, run, texts), texts=texts)


def measure_seed(run, texts):
    """The same, measured: as in studies.length, but sampled thoughts; and how long those are, before answers, which
    begin with a letter or with a digit."""
    model, (spans, answers, seen, tokenizer, among) = (
        load_run(run, "cpu")[0],
        text_of(CHATTER, texts),
    )
    found, seen = (measure_lengths(model, x, among, temperature=1.0) for x in (spans, seen))
    ways = ways_to_think(found, {}, expected_online(found, fit_online(seen)))
    table, points, best = compare(ways, found, answers)
    first = found.thoughts[:, :, 0]
    letters, digits = (np.isin(first, tokenizer.encode(x)) for x in ("hm", "0123456789"))
    for name, row in table.items():
        lengths = ways[name](row["price"])[1]
        row |= {
            "after_a_letter": spoken(lengths, answers & letters),
            "after_a_digit": spoken(lengths, answers & digits),
        }
    return {
        "table": {**table, "best or none": table[best]},
        "points": points,
        "letters": float(letters[answers].mean()),
    }


def astray(config, out):
    """Tokens and accuracy of ways to think, and how long thoughts become that begin with a letter or a digit."""
    flags = ["--thought_kind=any_length", "--reinforce_weight=0", "--n_thoughts=2"]
    runs = train_chatter(config, out, {"any_length": [*flags, max_steps(config, 4)]})
    calls = {key: (measured_seed, run, config.texts) for key, (run, _) in runs.items()}
    found = over_seeds(list(in_parallel(calls, config.jobs, "measuring").values()))
    about = "sampled thoughts on idle chatter: tokens a position, accuracy; tokens of thoughts before answers"
    print_rows(f"{about}; mean and spread over seeds {config.seeds}", found["table"], COLUMNS)
    keep_results(out, "astray", found)
    with picture(out / "astray.png", 7, 4.5, 1, title="Sampled thoughts on idle chatter") as (
        axes,
    ):
        draw_tokens(axes, found["points"])


if __name__ == "__main__":
    run_studies(__doc__, astray)

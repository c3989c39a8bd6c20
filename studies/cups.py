"""
Thoughts help on a second kind of text, too: a shell game instead of sums (data/cups). Further language modelling and
thoughts without tokens do not help there either.

    python -m studies.cups
"""

from studies.runs import HERE, fewer_steps, prepare, run_studies, train_rows
from studies.tables import held_out, table_of_runs


def cups(config, out):
    """A shell game (data/cups) instead of arithmetic; four of the controls' rows."""
    prepare("data/cups", "data/cups/prepare.py", out)
    steps = fewer_steps(config)
    preset = [f"--config={HERE / 'config' / 'cups_base.toml'}", "--eval_every=0", *steps]
    train_rows(config, out / "cups", {"base": []}, preset)
    preset = [
        f"--config={HERE / 'config' / 'cups.toml'}",
        "--base_preset=",
        "--eval_every=0",
        *steps,
    ]
    preset += [f"--init_from={out / 'cups' / 'base'}/{{seed}}"]
    rows = {"lm_same_tokens": ["--objective=lm"], "pause": ["--thought_len=0"], "full": []}
    train_rows(config, out / "cups", rows, preset)
    text = held_out(config, "data/cups")
    title = f"a shell game; {text[1].sum():,} answers of games whose steps are left out"
    table_of_runs(
        config,
        out,
        "cups",
        title,
        text,
        {name: (out / "cups" / name, {}) for name in ["base", *rows]},
    )


if __name__ == "__main__":
    run_studies(__doc__, cups)

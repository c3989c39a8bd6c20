"""
A thought must be as long as the steps that a sum needs (four). Shorter thoughts help little. Longer ones help
no more: they run on into the next line.

    python -m studies.thought_len
"""

from lib.pictures import draw_lines
from studies.runs import PLAIN, SETTINGS, run_studies, tokens_read, train_miniatures
from studies.tables import SCORES, held_out, keep_results, measure_rows, print_rows, scores_of
from train import settings_from


def thought_len(config, out):
    """Accuracy by thought_len: trained and read with it; trained with the default one, and read with it."""
    default = settings_from([])[2].thought_len
    names = {
        m: "full" if m == default else "pause" if m == 0 else f"thought_len_{m}"
        for m in (0, 1, 2, 3, 4, 6)
    }
    flags = {name: [] if name == "full" else [f"--thought_len={m}"] for m, name in names.items()}
    train_miniatures(config, out, flags)
    text = held_out(config)
    trained = measure_rows(config, text, {m: (out / name, {}) for m, name in names.items()})
    how = {
        m: {"settings": {"thought_len": m}, "name": f"scores_thought_len_{m}"}
        for m in (0, 1, 2, 3, 4, 5, 6, 8)
    }
    read = measure_rows(
        config, text, {m: (out / "full", {} if m == default else how[m]) for m in how}
    )
    base = scores_of(config, out / "base", text)["answer_accuracy"]
    for m, row in trained.items():
        row |= {
            "tokens_read": m + 3,
            "in_training": tokens_read([*SETTINGS[PLAIN], f"--thought_len={m}"]),
        }
    for m, row in read.items():
        row["tokens_read"] = m + 3
    lines = {"trained and evaluated": trained, f"trained with {default}, evaluated": read}
    for title, rows in lines.items():
        named = {f"thought_len {m}": row for m, row in rows.items()}
        columns = (*SCORES, "tokens_read", *(["in_training"] if rows is trained else []))
        print_rows(f"{title} with thought_len; tokens_read: for each token of text", named, columns)
    keep_results(
        out,
        "thought_len",
        {"trained": trained, f"evaluated_only_trained_with_{default}": read, "base": base},
    )
    lines = {
        f"{name} so": {m: row["answer_accuracy"] for m, row in rows.items()}
        for name, rows in lines.items()
    }
    labels, level = ("thought_len", "answers that are right"), ("base", base["mean"])
    draw_lines(lines, labels, out / "thought_len.png", "How long must a thought be?", level)


if __name__ == "__main__":
    run_studies(__doc__, thought_len)

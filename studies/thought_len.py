"""
A thought must be as long as the steps that a sum needs (three or four). Shorter thoughts help little. Longer ones help
no more: they run on into the next line.

    python -m studies.thought_len
"""

from tqdm import tqdm

from lib.pictures import draw_lines
from studies.runs import HARD, run_studies, tokens_read, train_miniatures
from studies.tables import SCORES, held_out, keep_results, print_rows, scores_of
from train import settings_from


def thought_len(config, out):
    """Accuracy by thought_len: trained and read with it; trained with the default one, and read with it."""
    default = settings_from([])[2].thought_len
    names = {m: "full" if m == default else "pause" if m == 0 else f"thought_len_{m}" for m in (0, 1, 2, 3, 4, 6)}
    flags = {name: [] if name == "full" else [f"--thought_len={m}"] for m, name in names.items()}
    train_miniatures(config, out, flags)
    text, trained, read = held_out(config), {}, {}
    for m in tqdm(names, desc="measuring", disable=None):
        training = tokens_read([HARD, f"--thought_len={m}"])
        trained[m] = {**scores_of(config, out / names[m], text), "tokens_read": m + 3, "in_training": training}
    for m in tqdm((0, 1, 2, 3, 4, 5, 6, 8), desc="measuring", disable=None):
        how = {"settings": {"thought_len": m}} if m != default else {}
        name = "scores" if m == default else f"scores_thought_len_{m}"
        read[m] = {**scores_of(config, out / "full", text, name, **how), "tokens_read": m + 3}
    base = scores_of(config, out / "base", text)["answer_accuracy"]
    for title, rows in (("trained and evaluated", trained), (f"trained with {default}, evaluated", read)):
        named = {f"thought_len {m}": row for m, row in rows.items()}
        columns = (*SCORES, "tokens_read", *(["in_training"] if rows is trained else []))
        print_rows(f"{title} with thought_len; tokens_read: for each token of text", named, columns)
    keep_results(out, "thought_len", {"trained": trained, f"evaluated_only_trained_with_{default}": read, "base": base})
    lines = {"trained and evaluated so": trained, f"trained with {default}, evaluated so": read}
    draw_lines(
        {name: {m: row["answer_accuracy"] for m, row in rows.items()} for name, rows in lines.items()},
        ("thought_len", "answers that are right"),
        out / "thought_len.png",
        level=("base", base["mean"]),
    )


if __name__ == "__main__":
    run_studies(__doc__, thought_len)

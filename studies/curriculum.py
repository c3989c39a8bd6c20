"""
A model that has learned to think cannot do without its thoughts here. Thoughts lose a token at each stage of training,
until there are none (Fast Quiet-STaR, Huang et al. 2025). The gain goes with them.

    python -m studies.curriculum
"""

from lib.pictures import draw_lines
from studies.runs import max_steps, run_studies, train_bases, train_rows
from studies.tables import held_out, keep_results, measure_rows, print_rows

STAGES = (3, 2, 1, 0)


def curriculum(config, out):
    """Thoughts lose a token at each stage, and at the last the model learns without any: what stays of the gain? Beside
    as many steps of language modelling, which read the same text but fewer tokens in all."""
    rows, before = {"full": []}, "full"
    for m in STAGES:
        name = f"curriculum_{m}"
        rows[name], before = [f"--init_from={out / before}/{{seed}}", f"--thought_len={m}"], name
    rows["curriculum_none"] = ["--objective=lm", f"--init_from={out / before}/{{seed}}"]
    rows["lm_as_long"] = ["--objective=lm", max_steps(config, times=len(STAGES) + 2)]
    preset = train_bases(config, out)
    for name, flags in rows.items():  # one after the other: each begins where the one before ended
        train_rows(config, out, {name: flags}, preset)
    found = measure_rows(config, held_out(config), {name: (out / name, {}) for name in ("base", *rows)})
    columns = ("answer_accuracy", "accuracy_without_thoughts", "answer_nll", "other_nll")
    print_rows(f"thoughts that grow shorter; mean and spread over seeds {config.seeds}", found, columns)
    ends = {"with_thoughts": "full", "without_thoughts": "curriculum_none"}
    ends = {name: found[row]["answer_accuracy"]["mean"] for name, row in ends.items()}
    keep_results(out, "curriculum", {**ends, "rows": found})
    stages = {name.replace("_", " "): row for name, row in found.items() if name not in ("base", "lm_as_long")}
    without = {stage: row["accuracy_without_thoughts"] for stage, row in stages.items()}
    after = {stage: row["answer_accuracy"] for stage, row in stages.items() if stage != "curriculum none"}
    level = "as many LM steps", found["lm_as_long"]["answer_accuracy"]["mean"]
    lines = {"after a thought": after, "without": without}
    draw_lines(lines, ("stage", "answers that are right"), out / "curriculum.png", "Thoughts that grow shorter", level)


if __name__ == "__main__":
    run_studies(__doc__, curriculum)

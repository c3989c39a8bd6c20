"""
Hard tokens gain from a thought, and the gate opens at answers. Answers follow what the thoughts say: if the last digit
of a right thought is changed to another, most answers become that digit.

    python -m studies.who
"""

import numpy as np
from tqdm import tqdm

from data.arithmetic.prepare import running_sums
from eval import measure
from lib.pictures import draw_who
from lib.runs import load_run
from studies.controls import of_other_positions
from studies.runs import PLAIN, run_studies, train_miniatures
from studies.tables import held_out, keep_results, over_seeds, print_rows
from studies.thoughts import held_out_questions, judge_thoughts, think_at_answers


def corrupted(question, place, rng):
    """The steps of a question with the digit at a place (-1: the last) made another: alone, so that the steps after it
    do not follow from it; and carried on, so that they do. Both as strings, such as "3154" -> "3174", "3176"."""
    steps = running_sums(question)
    i = len(steps) + place
    digit = rng.choice([d for d in "0123456789" if d != steps[i]])
    return steps[:i] + digit + steps[i + 1 :], steps[:i] + running_sums(digit + question[i + 1 :])


AFTER = ("accuracy_after_right", "accuracy_after_wrong")
CORRUPTED = ("answer_stays", "answer_follows", "answer_follows_carried_on")


def thoughts_and_answers(model, tokenizer, rows, questions, temperature, n_thoughts):
    """The share of thoughts whose running results are all right, and of answers right after such, and after others (of
    harder questions, perhaps: what thoughts do to answers, `corrupt` shows)."""
    useful, right, _ = judge_thoughts(model, tokenizer, rows, questions, n_thoughts, temperature)
    after = [float(right[some].mean()) if some.any() else None for some in (useful, ~useful)]
    return {"right": float(useful.mean()), **dict(zip(AFTER, after, strict=True))}


def corrupt(model, tokenizer, rows, questions, place):
    """Right thoughts with one digit of the steps made another (place -1: the last), where that leads to another answer.
    The share of answers that stay what they were; that are what the other digit leads to, though the thought goes on as
    before; and if the thought goes on from the other digit as well."""
    rng, m = np.random.default_rng(0), model.config.thought_len
    steps = [(running_sums(question), *corrupted(question, place, rng)) for question in questions]
    # those that fit into a thought
    some = [
        i
        for i, (right, _, carried) in enumerate(steps)
        if len(right) <= m and right[-1] != carried[-1]
    ]
    given = [[(thought + "—" * m)[:m] for thought in steps[i][1:]] for i in some]
    _, digits, _ = think_at_answers(model, tokenizer, rows[some], given)
    stays, leads_to = np.array([(int(steps[i][0][-1]), int(steps[i][2][-1])) for i in some]).T
    shares = digits[:, 0] == stays, digits[:, 0] == leads_to, digits[:, 1] == leads_to
    return dict(zip(CORRUPTED, (float(x.mean()) for x in shares), strict=True))


EDGES = np.linspace(-0.5, 1.5, 41)  # of the gate's histogram


def by_decile(x, difficulty):
    """Means of x (W, T) in tenths of the tokens, from the easiest to the hardest."""
    return [
        float(x.flat[some].mean()) for some in np.array_split(np.argsort(difficulty, axis=None), 10)
    ]


def measure_seed(base, full, text, lines):
    """All of this study's numbers for the models of one seed, on `held_out` and on `held_out_questions`."""
    spans, answers, meta = text
    difficulty, own = measure(base, spans, meta).nll_base, measure(full, spans, meta)
    others = measure(full, spans, meta, thoughts=of_other_positions(own.thoughts, answers))
    gains = {"own": own.nll_base - own.nll_mixed, "others": own.nll_base - others.nll_mixed}
    gates = {"at_answers": own.gate[answers], "elsewhere": own.gate[~answers]}
    counts = {
        name: np.histogram(gate.clip(EDGES[0], EDGES[-1]), EDGES)[0] for name, gate in gates.items()
    }
    places = {"last digit": -1, "last but one": -2, "last but two": -3}
    return {
        "base_nll_by_decile": by_decile(difficulty, difficulty),
        "gain_by_decile": {name: by_decile(gain, difficulty) for name, gain in gains.items()},
        "gate": {name: float(gate.mean()) for name, gate in gates.items()},
        "gate_histogram": {
            name: (counts[name] / gate.size).tolist() for name, gate in gates.items()
        },
        "thoughts": {
            "greedy": {"right": thoughts_and_answers(full, *lines, 0.0, 1)["right"]},
            "sampled": thoughts_and_answers(full, *lines, 1.0, 4),
        },
        "corrupted": {name: corrupt(full, *lines, place) for name, place in places.items()},
    }


def who(config, out):
    """Gains by difficulty, gates, and what answers make of right, wrong and corrupted thoughts."""
    train_miniatures(config, out, {"full": []})
    text, lines, of_seeds = held_out(config), held_out_questions(PLAIN), []
    for seed in tqdm(config.all_seeds(), desc="measuring", unit="seed", disable=None):
        models = (load_run(out / name / str(seed), "cpu")[0] for name in ("base", "full"))
        of_seeds.append(measure_seed(*models, text, lines))
    found = over_seeds(of_seeds)
    title = (
        f"{len(lines[1])} lines whose steps are left out; mean and spread over seeds {config.seeds}"
    )
    print_rows(
        f"thoughts and answers right after them, {title}", found["thoughts"], ("right", *AFTER)
    )
    print_rows(f"one digit of right steps made another, {title}", found["corrupted"], CORRUPTED)
    print_rows("gate", {name: {"gate": x} for name, x in found["gate"].items()}, ("gate",))
    keep_results(out, "who", {**found, "gate_histogram_edges": EDGES.tolist()})
    draw_who(found, EDGES, CORRUPTED, out / "who.png")


if __name__ == "__main__":
    run_studies(__doc__, who)

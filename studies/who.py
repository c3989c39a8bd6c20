"""
Hard tokens gain from a thought, and the gate opens at answers. Answers follow what the thoughts say: if the last digit
of a right thought is changed to another, most answers become that digit.

    python -m studies.who
"""

import numpy as np
from tqdm import tqdm

from data.dataset import open_dataset
from eval import measure
from lib.pictures import draw_who
from lib.runs import load_run
from lib.tokenizer import from_json
from studies.controls import of_other_positions
from studies.runs import run_studies, train_miniatures
from studies.tables import held_out, keep_results, over_seeds, print_rows
from studies.thoughts import is_useful, quiet_questions, steps_of, think_at_answers


def corrupted(question, place, rng):
    """The steps of a question with the digit at a place (-1: the last) made another: alone, so that the steps after it
    do not follow from it; and carried on, so that they do. Both as strings, such as "0082" -> "0032", "0034"."""
    steps = steps_of(question)
    i = len(steps) + place
    digit = rng.choice([d for d in "0123456789" if d != steps[i]])
    rest = question[1 + 2 * (i + 1) :]  # operations that follow
    return steps[:i] + digit + steps[i + 1 :], steps[:i] + digit + (steps_of(digit + rest) if rest else "")


AFTER = ("accuracy_after_right", "accuracy_after_wrong")
CORRUPTED = ("answer_stays", "answer_follows", "answer_follows_carried_on")


def thoughts_and_answers(model, tokenizer, rows, questions, temperature, n_thoughts):
    """The share of thoughts whose running results are all right, and of answers right after such, and after others (of
    harder questions, perhaps: what thoughts do to answers, `corrupt` shows)."""
    said, digits, _ = think_at_answers(model, tokenizer, rows, n_thoughts=n_thoughts, temperature=temperature)
    pairs = zip(said, questions, strict=True)
    useful = np.array([[is_useful(thought, question) for thought in row] for row, question in pairs])
    right = digits == np.array([[int(steps_of(question)[-1])] for question in questions])
    after = [float(right[some].mean()) if some.any() else None for some in (useful, ~useful)]
    return {"right": float(useful.mean()), **dict(zip(AFTER, after, strict=True))}


def corrupt(model, tokenizer, rows, questions, place):
    """Right thoughts with one digit of the steps made another (place -1: the last), where that leads to another answer.
    The share of answers that stay what they were; that are what the other digit leads to, though the thought goes on as
    before; and if the thought goes on from the other digit as well."""
    rng, m, answers, pairs, some = np.random.default_rng(0), model.config.thought_len, [], [], []
    for i, question in enumerate(questions):
        alone, carried = corrupted(question, place, rng)
        if len(alone) <= m and carried[-1] != steps_of(question)[-1]:  # its steps fit into a thought
            some.append(i)
            pairs.append((alone, carried))
            answers.append((int(steps_of(question)[-1]), int(carried[-1])))
    given = [[(thought + "—" * m)[:m] for thought in pair] for pair in pairs]
    _, digits, _ = think_at_answers(model, tokenizer, rows[some], given)
    stays, leads_to = np.array(answers).T
    shares = digits[:, 0] == stays, digits[:, 0] == leads_to, digits[:, 1] == leads_to
    return dict(zip(CORRUPTED, (float(x.mean()) for x in shares), strict=True))


def who(config, out):
    """Gains by difficulty, gates, and what answers make of right, wrong and corrupted thoughts."""
    runs, (spans, answers, meta) = train_miniatures(config, out, {"full": []}), held_out(config)
    dataset = open_dataset("data/arithmetic", "val")
    tokenizer = from_json(dataset.meta["tokenizer"], "data/arithmetic")
    rows, questions = quiet_questions(dataset, tokenizer)
    of_seeds, edges = [], np.linspace(-0.5, 1.5, 41)
    for seed in tqdm(config.all_seeds(), desc="measuring", unit="seed", disable=None):
        base, full = (load_run(folder, "cpu")[0] for folder in (out / "base" / str(seed), runs["full", seed][0]))
        difficulty, own = measure(base, spans, meta).nll_base, measure(full, spans, meta)
        others = measure(full, spans, meta, thoughts=of_other_positions(own.thoughts, answers))
        gains = {"own": own.nll_base - own.nll_mixed, "others": own.nll_base - others.nll_mixed}
        deciles = np.array_split(np.argsort(difficulty, axis=None), 10)
        gates = {"at_answers": own.gate[answers], "elsewhere": own.gate[~answers]}
        of_seeds.append(
            {
                "base_nll_by_decile": [float(difficulty.flat[some].mean()) for some in deciles],
                "gain_by_decile": {
                    name: [float(gain.flat[some].mean()) for some in deciles] for name, gain in gains.items()
                },
                "gate": {name: float(gate.mean()) for name, gate in gates.items()},
                "gate_histogram": {
                    name: (np.histogram(gate.clip(edges[0], edges[-1]), edges)[0] / gate.size).tolist()
                    for name, gate in gates.items()
                },
                "thoughts": {
                    "greedy": {"right": thoughts_and_answers(full, tokenizer, rows, questions, 0.0, 1)["right"]},
                    "sampled": thoughts_and_answers(full, tokenizer, rows, questions, 1.0, 4),
                },
                "corrupted": {
                    name: corrupt(full, tokenizer, rows, questions, place)
                    for place, name in ((-1, "last digit"), (-2, "last but one"), (-3, "last but two"))
                },
            }
        )
    found = over_seeds(of_seeds)
    title = f"{len(rows)} lines whose steps are left out; mean and spread over seeds {config.seeds}"
    print_rows(f"thoughts and answers right after them, {title}", found["thoughts"], ("right", *AFTER))
    print_rows(f"one digit of right steps made another, {title}", found["corrupted"], CORRUPTED)
    gate = {name: {"gate": x} for name, x in found["gate"].items()}
    print_rows("gate", gate, ("gate",))
    keep_results(out, "who", {**found, "gate_histogram_edges": edges.tolist()})
    draw_who(found, edges, CORRUPTED, out / "who.png")


if __name__ == "__main__":
    run_studies(__doc__, who)
